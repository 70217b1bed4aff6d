"""The words of adapters in use: what each file says of its trigger and class word, and prompts with these in them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from finetune import reading
from finetune.data.text.prompts import WORD_NAMES, all_lack, expand, missing_word
from finetune.errors import InputError
from finetune.families.base import BaseInfo
from finetune.files import layouts
from finetune.planning.prompts import NamedPrompt, too_long
from finetune.recipe.placeholders import prompt_fault
from finetune.sampling.request import AdapterWeight, SampleSet
from finetune.tensors import read_header

NEGATIVE = "the negative prompt"


class AdapterInUse(NamedTuple):
    """An adapter file, its weight, and the words that it says it was trained with; "" where it says none."""

    file: Path
    weight: float
    trigger: str
    class_word: str

    def described(self) -> str:
        says = f"its trigger is {self.trigger!r}" if self.trigger else "it names no trigger"
        return f"{self.file.name} at weight {self.weight:g} ({says})"


def adapters_in_use(adapters: Sequence[AdapterWeight]) -> list[AdapterInUse]:
    """What adapter files say of themselves; no weights are read.

    Raises:
        InputError: one of them is named twice.
        BaseError: a file cannot be read.
    """
    resolved = [reading.real_path(adapter.path) for adapter in adapters]
    if twice := [a.path for i, a in enumerate(adapters) if resolved[i] in resolved[:i]]:
        raise InputError(f"{twice[0]} is named twice, and would be applied twice", "name it once, at one weight")
    return [AdapterInUse(a.path, a.weight, *_words(a.path)) for a in adapters]


def written_out(wanted: SampleSet, adapters: Sequence[AdapterInUse]) -> SampleSet:
    """The set with the words in its prompts, those that were asked for or else the adapters' own.

    Raises:
        InputError: there is no prompt; one holds what is not read; a placeholder has no word, or several.
    """
    if not wanted.prompts:
        raise InputError("there is no prompt", "name at least one: `prompt`, or a file of `prompts`")
    for name in WORD_NAMES:
        said = getattr(wanted, name)
        if said is not None and not said.strip():
            raise InputError(f"the {WORD_NAMES[name]} is blank", f"write a word, or leave `{name}` out")
        if said is not None and (fault := prompt_fault(said)):
            raise InputError(f"the {WORD_NAMES[name]} {said!r}: {fault.problem}", fault.remedy)
    prompts = [_filled(prompt, wanted, adapters) for prompt in named_prompts(wanted)]
    negative = _filled(NamedPrompt(NEGATIVE, wanted.negative), wanted, adapters)
    options = [
        one if one.negative is None
        else one._replace(negative=_filled(NamedPrompt(f"{one.where}, {NEGATIVE}", one.negative), wanted, adapters))
        for one in wanted.options
    ]  # fmt: skip
    return replace(wanted, prompts=prompts, negative=negative, options=options)


def named_prompts(wanted: SampleSet) -> list[NamedPrompt]:
    """Each prompt with where it was written."""
    places = wanted.sources or [f"prompt {n}" for n in range(1, len(wanted.prompts) + 1)]
    return [NamedPrompt(*one) for one in zip(places, wanted.prompts, strict=True)]


def stacked(adapters: Sequence[AdapterInUse]) -> str:
    """A sentence on the adapters in use; empty without any."""
    described = [adapter.described() for adapter in adapters]
    if len(described) < 2:
        return f"adapter: {described[0]}" if described else ""
    return f"{len(described)} adapters together, their changes add up: {'; '.join(described)}"


def word_notices(wanted: SampleSet, base: str, info: BaseInfo, adapters: Sequence[AdapterInUse]) -> Iterator[str]:
    """A sentence on each trigger that no prompt has, and on each prompt that is longer than the base reads.

    wanted: written out.
    """
    triggers = {
        adapter.trigger: f" of {adapter.file.name}" for adapter in adapters if adapter.weight and adapter.trigger
    }
    if wanted.trigger and wanted.trigger not in triggers:
        triggers = {wanted.trigger: ""}
    for trigger, of in triggers.items():
        if all_lack(wanted.prompts, trigger):
            yield f"no prompt has the trigger {trigger!r}{of}, so what it stands for may not show; write it into one"
    negatives = [NamedPrompt(NEGATIVE, wanted.negative)]
    negatives += [NamedPrompt(f"{one.where}, {NEGATIVE}", one.negative) for one in wanted.options if one.negative]
    yield from too_long(base, info, [*named_prompts(wanted), *negatives])


def _filled(prompt: NamedPrompt, wanted: SampleSet, adapters: Sequence[AdapterInUse]) -> str:
    if fault := prompt_fault(prompt.text):
        raise InputError(f'{prompt.where}, "{prompt.text}": {fault.problem}', fault.remedy)
    words = {name: _word(name, prompt, wanted, adapters) for name in WORD_NAMES if f"{{{name}}}" in prompt.text}
    trigger, class_word = words.get("trigger"), words.get("class_word")
    if lacking := missing_word(prompt.text, trigger, class_word):
        files = " and ".join(adapter.file.name for adapter in _meant(wanted, adapters))
        who = f"{files} names no" if files else "there is no adapter to name a"
        raise InputError(
            f'{prompt.where}, "{prompt.text}": {who} {WORD_NAMES[lacking]}', f"name it: `{lacking}`, or write the word"
        )
    return expand(prompt.text, trigger, class_word)


def _word(name: str, prompt: NamedPrompt, wanted: SampleSet, adapters: Sequence[AdapterInUse]) -> str:
    """The word for a placeholder: asked for, or that of the adapters; a trigger asked for names its adapter.

    Raises InputError: the adapters name several.
    """
    said: str | None = getattr(wanted, name)
    if said:
        return said
    own = [(getattr(adapter, name), adapter.file.name) for adapter in _meant(wanted, adapters)]
    found = {word: file for word, file in own if word}
    if len(found) > 1:
        each = ", ".join(f"{word!r} of {file}" for word, file in found.items())
        raise InputError(
            f'{prompt.where}, "{prompt.text}": {{{name}}} may be {each}', f"say which: `{name}`, or write the words"
        )
    return next(iter(found), "")


def _meant(wanted: SampleSet, adapters: Sequence[AdapterInUse]) -> Sequence[AdapterInUse]:
    """Those that have the trigger that was asked for; all, if none has it or none was asked for."""
    return [a for a in adapters if wanted.trigger and a.trigger == wanted.trigger] or adapters


def _words(path: Path) -> tuple[str, str]:
    """(trigger, class word) as a file of ours says, or another trainer's by ModelSpec."""
    folder = None if reading.is_file(path) else layouts.adapter_in(path)
    files = [path] if folder is None else sorted(folder.rglob("*.safetensors")) if reading.is_dir(folder) else [folder]
    # a checkpoint's folder holds other files as well, which do not name the adapter
    metadata = {key: text for file in files for key, text in read_header(file).metadata.items()}
    trigger = metadata.get("finetune.trigger") or metadata.get("modelspec.trigger_phrase", "")
    return trigger, metadata.get("finetune.class_word", "")
