"""Prompt files: one prompt a line with options of its own, as kohya and ai-toolkit write them; or JSON, or TOML.

A line is `a red mug` and then, in any order, two hyphens and a name, and a value. The names are those of the command's
own options (negative, size, seed, steps, guidance) and kohya's and ai-toolkit's letters for them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune import reading
from finetune.data.text.texts import text_in
from finetune.errors import InputError
from finetune.planning.prompts import NamedPrompt
from finetune.recipe import bounds
from finetune.recipe.foreign_syntax import translated
from finetune.recipe.placeholders import prompt_fault
from finetune.sampling.request import PromptOptions

_OPTION = re.compile(r"(?<!\S)--([A-Za-z][\w-]*)(?=[\s=]|$)=?")
_NAMES = {
    "n": "negative", "neg": "negative", "negative": "negative", "negative_prompt": "negative",
    "w": "width", "width": "width", "h": "height", "height": "height", "size": "size",
    "d": "seed", "seed": "seed", "s": "steps", "steps": "steps", "sample_steps": "steps",
    "num_inference_steps": "steps", "guidance": "guidance", "g": "guidance", "l": "cfg", "cfg": "cfg",
    "scale": "cfg", "guidance_scale": "cfg", "cfg_scale": "cfg",
}  # fmt: skip
"""As it is written -> what it is. cfg: of classifier-free guidance; guidance: of whatever the base takes"""
_BOUNDS = {"width": "data.resolution", "height": "data.resolution", "seed": "sample.seed", "steps": "sample.steps",
           "guidance": "sample.guidance", "cfg": "sample.guidance"}  # fmt: skip
_ELSEWHERE = {
    "ss": "`scheduler` chooses the sampling method of all prompts", "sampler": "`scheduler` chooses it for all prompts",
    "am": "give the adapter's weight with it: `adapter` FILE:weight", "m": "give it with the `adapter`, as FILE:weight",
    "network_multiplier": "give it with the `adapter`, as FILE:weight",
    "cn": "control images are not read here: leave it out",
    "ctrl_img": "control images are not read here: leave it out",
    "fs": "the flow's shift is the base's own: leave it out", "ar": "write width and height instead",
}  # fmt: skip
_TEXTS = ("prompt", "text")
_FORMS = "a text file with one prompt a line"


class PromptLine(NamedTuple):
    """A prompt of a file, and what is asked for it alone."""

    prompt: NamedPrompt
    options: PromptOptions


class PromptFile(NamedTuple):
    lines: list[PromptLine]
    notes: list[str]
    """What was made of what other programs write differently"""


def read_prompts(file: Path) -> PromptFile:
    """The prompts of a file, each with its place and options.

    Raises:
        InputError: the file cannot be read, has no prompt, or a line or entry that is none.
    """
    text = text_in(file, InputError, reading.CONFIG_BYTES)
    suffix = file.suffix.lower()
    if suffix in (".json", ".toml"):
        return _finished(file, _entries(file, text), [])
    return _of_lines(file, text)


def _of_lines(file: Path, text: str) -> PromptFile:
    lines = [(f"{file} line {n}", line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    remarks = [line for _, line in lines if re.match(r"#+(\s|$)", line)]
    lines = [(where, line) for where, line in lines if not re.match(r"#+(\s|$)", line)]
    bounds.check_pictures(len(lines), 1)  # before each is looked at
    note = f"{file.name}: lines that begin with # are remarks, and no prompts: {len(remarks)}"
    return _finished(file, [_line(where, line) for where, line in lines], [note] if remarks else [])


def _finished(file: Path, lines: list[PromptLine], notes: list[str]) -> PromptFile:
    """Raises InputError: there is none, or one that cannot be read."""
    if not lines:
        raise InputError(f"{file} has no prompt", "write one prompt a line")
    bounds.check_pictures(len(lines), 1)
    ready = []
    for line in lines:
        text = translated(line.prompt.text)
        negative = translated(line.options.negative or "")
        notes += [f"{line.prompt.where}: {one}" for one in (*text.found, *negative.found)]
        for one in (text.text, negative.text):
            if fault := prompt_fault(one):
                raise InputError(f'{line.prompt.where}, "{one}": {fault.problem}', fault.remedy)
        options = line.options if line.options.negative is None else line.options._replace(negative=negative.text)
        ready.append(PromptLine(line.prompt._replace(text=text.text), options))
    return PromptFile(ready, notes)


def _line(where: str, line: str) -> PromptLine:
    if line.startswith("#"):
        raise InputError(
            f"{where} begins with # and no space: a remark, or a prompt?",
            "put a space after the # of a remark, and another word before the # of a prompt",
        )
    found = list(_OPTION.finditer(line))
    ends = [*(one.start() for one in found), len(line)][1:]
    written = [(one[1], one[0].strip("="), line[one.end() : end].strip()) for one, end in zip(found, ends, strict=True)]
    text = line[: found[0].start()].strip() if found else line
    if not text:
        raise InputError(f"{where} has options and no prompt", "write the prompt before them")
    return PromptLine(NamedPrompt(where, text), _options(where, written))


def _options(where: str, written: Sequence[tuple[str, str, object]]) -> PromptOptions:
    """written: (name, as it stands there, value)"""
    values: dict[str, Any] = {}
    for name, shown, value in written:
        what = _NAMES.get(name.lower())
        if what is None:
            remedy = _ELSEWHERE.get(name) or "leave it out; read are negative, size, seed, steps and guidance"
            raise InputError(f"{where}: {shown} is no option of a prompt here", remedy)
        for key, one in _values(where, what, shown, value).items():
            if values.setdefault(key, one) != one:
                raise InputError(f"{where}: {shown} says {one}, and before it is {values[key]}", "keep one of them")
    return PromptOptions(where=where, **values)


def _values(where: str, what: str, shown: str, value: object) -> dict[str, Any]:
    if what == "negative":
        if not isinstance(value, str):
            raise InputError(f"{where}: {shown} must be a text", "put it in quotes")
        return {what: value}
    if what == "size":
        sides = str(value).lower().split("x")
        if len(sides) != 2:
            raise InputError(f"{where}: {shown} {value} is not a size", "write it as WIDTHxHEIGHT, such as 512x768")
        return {"width": _number(where, "width", shown, sides[0]), "height": _number(where, "height", shown, sides[1])}
    return {what: _number(where, what, shown, value)}


def _number(where: str, what: str, shown: str, value: object) -> float:
    key = _BOUNDS[what]
    kind, called = (int, "a whole number") if bounds.is_whole(key) else (float, "a number")
    try:
        number = kind(value if isinstance(value, str) else _plain_number(value, kind))
    except (ValueError, OverflowError) as e:
        hint = "one seed a prompt; `count` makes pictures at the seeds after it" if what == "seed" else "write one"
        raise InputError(f"{where}: {shown} {value!r} is not {called}", hint) from e
    if problem := bounds.violation(key, number):
        raise InputError(f"{where}: {shown} {problem}", "give another number")
    return number


def _plain_number(value: object, kind: type[int] | type[float]) -> float:
    """Raises ValueError: it is no number, or no whole one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or (kind is int and value != int(value)):
        raise ValueError
    return value


# --- JSON and TOML --------------------------------------------------------------------------------------------------


def _entries(file: Path, text: str) -> list[PromptLine]:
    """A list of prompts or of tables with `prompt`; kohya's [prompt] with [[prompt.subset]]; names with prompts."""
    hint = f"a list of tables with prompt, negative_prompt, width, height, seed, steps; or {_FORMS}"
    if file.suffix.lower() == ".toml":
        found: Any = reading.toml_table(text, str(file), InputError, hint)
    else:
        found = reading.json_value(text, str(file), InputError, hint)
    if isinstance(found, dict) and isinstance(shared := found.get("prompt"), dict):
        subsets = shared.get("subset", [])
        own = {key: value for key, value in shared.items() if key != "subset"}
        found = [own | one if isinstance(one, dict) else one for one in subsets] if isinstance(subsets, list) else None
    elif isinstance(found, dict) and isinstance(found.get("prompts"), list):
        found = found["prompts"]
    elif isinstance(found, dict) and not any(key in found for key in _TEXTS):
        found = list(found.values())
    elif isinstance(found, dict):
        found = [found]
    if not isinstance(found, list):
        raise InputError(f"{file} is no list of prompts", hint)
    bounds.check_pictures(len(found), 1)
    return [_entry(f"{file} entry {n}", one, hint) for n, one in enumerate(found, 1)]


def _entry(where: str, one: object, hint: str) -> PromptLine:
    if isinstance(one, str) and one.strip():
        return PromptLine(NamedPrompt(where, one.strip()), PromptOptions(where=where))
    if not isinstance(one, Mapping):
        raise InputError(f"{where} is no prompt", hint)
    texts = [value for key in _TEXTS if (value := one.get(key)) is not None]
    if len(texts) != 1 or not isinstance(texts[0], str) or not texts[0].strip():
        raise InputError(f"{where} must have one prompt, a text", hint)
    written = [(key, key, value) for key, value in one.items() if key not in _TEXTS and value is not None]
    return PromptLine(NamedPrompt(where, texts[0].strip()), _options(where, written))
