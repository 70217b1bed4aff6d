"""Encode each caption once by every text encoder that is not trained; what the denoiser then reads of it."""

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence

import torch

from finetune.encoding.store import Store, Stored, entry_key
from finetune.families import base
from finetune.families.base import Family, Prompt, Text, as_prompts


class Captions:
    """What the text encoders make of captions: the frozen ones made it once, the trained ones are asked each time."""

    def __init__(self, family: Family, known: Mapping[str, Mapping[str, Text]], device: torch.device) -> None:
        """known: encoder -> a prompt's key -> its text, without a batch axis."""
        self.family, self.known, self.device = family, known, device

    def made(self, prompts: Sequence[Prompt | str]) -> dict[str, Text]:
        """Each frozen encoder -> what it made of these, on the device."""
        keys = [prompt.key for prompt in as_prompts(prompts)]
        stacked = {e: Text.stacked([texts[key] for key in keys]) for e, texts in self.known.items()}
        return {e: text.each(lambda part: part.to(self.device)) for e, text in stacked.items()}

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
    weights_of = family.fingerprint(encoder)
    found: Stored[str, Text] = Stored(store, "text", lambda entry: Text(**entry))
    for done, prompt in enumerate(as_prompts(prompts), 1):
        key = entry_key(
            prompt.caption, *(image.digest for image in prompt.images), family.facts.max_tokens, encoder, weights_of
        )
        entry = store.get("text", key)
        if entry is None:
            with torch.no_grad():
                made = _trimmed(family.encode(encoder, [prompt]).each(lambda part: part[0].cpu()))
            entry = {name: tensor for name, tensor in made._asdict().items() if tensor is not None}
            store.put("text", key, entry)
        found.add(prompt.key, key, entry)
        yield done
    return found


def _trimmed(text: Text) -> Text:
    """Without what only fills a caption up."""
    if text.mask is None:
        return text
    length = int(text.mask.nonzero().max()) + 1
    return Text(text.tokens[:length].clone(), text.pooled, text.mask[:length].clone())
