"""Encode each caption once by every text encoder that is not trained; what the denoiser then reads of it."""

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from operator import itemgetter

import torch
from torch import Tensor

from finetune.encoding.missing import Fewer, Missing
from finetune.encoding.store import Store, entry_key
from finetune.encoding.stored import Stored
from finetune.families import base
from finetune.families.base import Family, Prompt, Text, as_prompts

TOGETHER = {"cpu": 1, "cuda": 16}
"""captions that are encoded at once; on a CPU one at a time, whose bits are always the same"""


class Captions:
    """What the text encoders make of captions: the frozen ones made it once, the trained ones are asked each time."""

    def __init__(self, family: Family, known: Mapping[str, Mapping[str, Text]], device: torch.device) -> None:
        """known: encoder -> a prompt's key -> its text, without a batch axis."""
        self.family, self.known, self.device = family, known, device

    def made(self, prompts: Sequence[Prompt | str]) -> dict[str, Text]:
        """Each frozen encoder -> what it made of these, on the device."""
        return {e: text.each(lambda part: part.to(self.device)) for e, text in self.stacked(prompts).items()}

    def stacked(self, prompts: Sequence[Prompt | str]) -> dict[str, Text]:
        """The same on the CPU."""
        keys = [prompt.key for prompt in as_prompts(prompts)]
        return {e: Text.stacked([texts[key] for key in keys]) for e, texts in self.known.items()}

    def read(self, prompts: Sequence[Prompt | str]) -> Text:
        """What the denoiser reads."""
        return base.read(self.family, prompts, self.made(prompts))


def read_ahead(
    family: Family, prompts: Iterable[Prompt | str], device: torch.device, but: Collection[str] = ()
) -> Captions:
    """Prompts as the large text encoders read them, which are then let go: the denoiser needs their room. but: without
    these encoders."""
    wanted, texts = {prompt.key: prompt for prompt in as_prompts(prompts)}, {}
    for encoder in base.large_encoders(family):
        if encoder in but:
            continue
        family.parts.load(encoder).to(device, encoder)
        with torch.no_grad():
            made = {key: family.encode(encoder, [prompt]) for key, prompt in wanted.items()}
        texts[encoder] = {key: text.each(lambda part: part[0].cpu()) for key, text in made.items()}
        family.parts.release(encoder)
    return Captions(family, texts, device)


def encode_texts(
    store: Store, family: Family, encoder: str, prompts: Iterable[Prompt | str]
) -> Generator[int, None, Mapping[str, Text]]:
    """A prompt's key -> its text by one frozen encoder, without a batch axis, from the store or encoded now.

    Yields how many are done.
    """
    wanted, after = as_prompts(prompts), (family.facts.max_tokens, encoder, family.fingerprint(encoder))
    keys = [entry_key(prompt.caption, *(image.digest for image in prompt.images), *after) for prompt in wanted]
    entries = store.entries("text", keys)
    numbers = {prompt.key: number for prompt, number in zip(wanted, entries.numbers, strict=True)}
    found: Stored[str, Text] = Stored(entries, numbers, lambda entry: Text(**entry))
    missing = Missing(store, "text", found, wanted)
    encode = Fewer[Prompt, dict[str, Tensor]](lambda some: _encoded(family, encoder, some))
    with missing.kept():
        yield from missing.found_before()
        together = TOGETHER.get(next(family.parts[encoder].parameters()).device.type, 1)
        for batch in missing.batches(_batched(missing.todo.items(), together)):
            for (number, _), entry in zip(batch, encode([prompt for _, prompt in batch]), strict=True):
                missing.put(number, entry)
            yield missing.done
    return found


def _batched(prompts: Iterable[tuple[int, Prompt]], together: int) -> Iterator[list[tuple[int, Prompt]]]:
    """One by one where pictures are beside captions."""
    for pictured, alike in groupby(prompts, lambda pair: bool(pair[1].images)):
        while batch := list(islice(alike, 1 if pictured else together)):
            yield batch


@torch.no_grad()
def _encoded(family: Family, encoder: str, prompts: Sequence[Prompt]) -> list[dict[str, Tensor]]:
    whole = family.encode(encoder, prompts)
    rows = (whole.each(itemgetter(i)) for i in range(len(prompts)))
    singles = [_trimmed(row.each(lambda part: part.to("cpu", copy=True))) for row in rows]
    return [{name: part for name, part in one._asdict().items() if part is not None} for one in singles]


def _trimmed(text: Text) -> Text:
    """Without what only fills a caption up."""
    if text.mask is None:
        return text
    length = int(text.mask.nonzero().max()) + 1
    return Text(text.tokens[:length].clone(), text.pooled, text.mask[:length].clone())
