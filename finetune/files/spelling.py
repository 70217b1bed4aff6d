"""How a file spells its modules' names, and what each program makes of a file that is spelled so.

What each reader does was measured with its own loading code, on every family; docs/adapters.md has the rules.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from finetune import families
from finetune.adapters.change import AdapterState
from finetune.choices import ReaderName
from finetune.families.readers import OF_UNETS, Reader
from finetune.files.names import bare, unwrapped

_PREFIX = re.compile(r"lora_transformer_|lora_unet_|lycoris_")


class Spelled(NamedTuple):
    """A module as a file has it."""

    raw: str
    name: str
    """canonical"""
    right: str
    """how kohya's own readers, or the original code, want it written; empty: not known without a base"""
    kohya: bool
    """in one word, as kohya writes names; else with dots"""
    roles: frozenset[str]


def readers_of(family: str) -> tuple[Reader, ...]:
    """Of a family's adapters; of none that is known, all that read UNets'."""
    return families.family_class(family).readers if family in families.registry() else OF_UNETS


def spelling_of(one: Spelled, original: bool) -> str:
    """What a name is spelled like, wrappers aside: kohya, original, diffusers, or the prefix that it has instead.
    original: `right` is a name of the original code."""
    raw = unwrapped(one.raw)
    if raw.startswith("lora_te"):
        level = "" if "_text_model_" in raw else "no text_model_"
        return level or ("kohya" if raw == one.right or not one.right else "lora_te1_")
    if one.kohya:
        prefix = _PREFIX.match(raw)
        own = raw == one.right or not one.right
        if own and not (original and prefix and prefix[0] != "lora_unet_"):
            return "original" if original else "kohya"
        return prefix[0] if prefix else raw.partition("_")[0]
    head = raw.partition(".")[0]
    if one.raw.startswith("base_model.model."):
        return "peft"
    if one.right and bare(raw) == one.right and head not in ("transformer", "unet"):
        return "original"
    if head == "diffusion_model":
        return "diffusion_model."
    return "diffusers" if head == one.name.partition(".")[0] else "bare"


class Misreadings:
    """Which programs a file is meant for by its names, and what each of the family's readers would get wrong in it."""

    def __init__(self, modules: Sequence[Spelled], changes: AdapterState, told: Collection[str], family: str) -> None:
        """told: keys of its metadata."""
        self.modules, self.changes, self.told = modules, changes, told
        self.original = family in families.registry() and families.family_class(family).layout != "kohya"
        self.readers = readers_of(family)

    def claims(self) -> tuple[ReaderName, ...]:
        """Readers that know most of its names, and have a place for all of its modules."""
        denoiser = [one for one in self.modules if not one.raw.startswith(("lora_te", "text_encoder"))]
        spellings = Counter(spelling_of(one, self.original) for one in denoiser or self.modules)
        usual = max(spellings, key=lambda s: spellings[s], default="")
        tucker = ("diffusers", "kohya") if any("mid" in one.roles for one in self.modules) else ()  # LyCORIS' own
        meant = (r for r in self.readers if usual in r.names and r.program not in tucker)
        return tuple(r.program for r in meant if not any(self._dropped(r, one) for one in self.modules))

    def found(self) -> dict[ReaderName, str]:
        """The first that each gets wrong."""
        return {reader.program: why for reader in self.readers if (why := next(self._of(reader), ""))}

    def knowing(self) -> tuple[ReaderName, ...]:
        """Readers that know any of its names."""
        spellings = {spelling_of(one, self.original) for one in self.modules}
        return tuple(r.program for r in self.readers if spellings.intersection(r.names))

    def _dropped(self, reader: Reader, one: Spelled) -> bool:
        return one.name in reader.drops and spelling_of(one, self.original) != "original"

    def _of(self, reader: Reader) -> Iterator[str]:
        strange = [one for one in self.modules if spelling_of(one, self.original) not in reader.names]
        strange += [one for one in self.modules if unwrapped(one.raw) != one.raw and one not in strange]
        if strange:
            known = f"; it knows {strange[0].right}" if self._is_misspelt(strange[0]) else ""
            yield f"it does not know names like {strange[0].raw}, of {len(strange)} modules{known}"
        if dropped := [one.name for one in self.modules if self._dropped(reader, one)]:
            yield f"it passes over {len(dropped)} modules, {dropped[0]} first"
        roles = frozenset().union(*(one.roles for one in self.modules))
        kohya = [one for one in self.modules if one.kohya]
        if "magnitude" in roles and kohya and reader.program in _DORA:
            yield f"of DoRA's dora_scale, {_DORA[reader.program]}"
        if "mid" in roles and reader.program == "kohya":
            yield "it does not read lora_mid"
        if reader.program == "lycoris" and kohya and not any("alpha" in one.roles for one in kohya):
            yield "it refuses a file without .alpha on any module"
        if reader.program == "diffusers":
            yield from self._of_diffusers(kohya)
        elif "lora_adapter_metadata" in self.told and any(change.scale != 1 for change in self.changes.values()):
            yield "it takes no scale from lora_adapter_metadata: the strength would be another"

    def _of_diffusers(self, kohya: Sequence[Spelled]) -> Iterator[str]:
        """What is known without its being run."""
        dotted = [one for one in self.modules if not one.kohya]
        if kohya and dotted:
            yield "it drops all but one of several naming schemes in a file without a word"
        if kohya and "lora_adapter_metadata" in self.told:
            yield "it refuses lora_adapter_metadata beside kohya's names"
        if any("alpha" in one.roles for one in dotted):
            yield "it refuses an .alpha beside dotted names"

    def _is_misspelt(self, one: Spelled) -> bool:
        return one.kohya and not self.original and bool(one.right) and one.right != one.raw


_DORA: Mapping[ReaderName, str] = {
    "diffusers": "it drops them: LyCORIS alone applies them as they were trained",
    "kohya": "it drops them: LyCORIS alone applies them as they were trained",
    "comfyui": "it divides by another length than LyCORIS and PEFT",
    "forge": "it divides by another length than LyCORIS and PEFT",
    "a1111": "it does not know them",
}
