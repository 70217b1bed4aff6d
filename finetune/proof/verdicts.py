"""What each program that reads a base's adapters makes of a file."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from finetune.choices import ReaderName
from finetune.families.base import Family
from finetune.families.readers import TITLES
from finetune.files import layouts


@dataclass(frozen=True)
class ReaderVerdict:
    """What one program makes of the file. diffusers was run; the others are judged by their reading rules."""

    program: str
    """as people call it"""
    asked: bool
    """by name, or by the file, whose names are this program's"""
    right: bool | None
    """it applies what the file says; None: not known"""
    why: str
    """not; a sentence"""


def judge_readers(
    family: Family, adapter: layouts.AdapterFile, stock: Sequence[str] | None, wanted: Collection[ReaderName]
) -> dict[str, ReaderVerdict]:
    """Of each program. stock: what diffusers got wrong when it was given the file; None: it was not. wanted: the
    programs that are asked for; none: those that the file claims by its names."""
    known = [reader.program for reader in family.readers]
    found: dict[str, ReaderVerdict] = {}
    for program in (*known, *(other for other in wanted if other not in known)):
        right, doubt = _by_rules(program, adapter, program in known)
        why = f"{TITLES[program]}: {doubt}" if doubt else ""
        if program == "diffusers" and stock is not None:
            right, why = not stock, " and ".join(stock)
        found[program] = ReaderVerdict(TITLES[program], program in (wanted or adapter.claims), right, why)
    return found


def _by_rules(program: ReaderName, adapter: layouts.AdapterFile, reads: bool) -> tuple[bool | None, str]:
    """Whether a program applies the file as it says, and why not."""
    if not reads:
        return False, "it reads no adapters for this base's family"
    if adapter.layout == "peft":
        return False, "it reads files, and this is a directory of PEFT's"
    if not adapter.modules:
        return None, "there is nothing in it to judge"
    doubt = adapter.misread.get(program, "")
    return not doubt, doubt
