"""What the audit found, in sentences: what is wrong, where, and what to do about it."""

from collections import Counter
from collections.abc import Sequence

from finetune.data.example import DatasetCard
from finetune.data.images.colours import colour_name
from finetune.data.quality.caption_report import caption_sentences
from finetune.data.quality.class_images import ClassLeak
from finetune.data.quality.faults import FAULT_KINDS, AuditFindings, FaultKind, looks_like

ADVICE: dict[FaultKind, tuple[str, str]] = {
    "leak": (
        "training image|s like a held-out one",
        "the validation loss comes out too low; leave them out of training",
    ),
    "near duplicate": ("near-duplicate|s", "copies are learnt more strongly than the other images; keep one of each"),
    "blurred": ("blurred image|s", "the blur is learnt, too; replace them"),
    "upscaled": ("image|s larger than the detail in it", "soft at the training size; use the originals"),
    "border": ("image|s with a plain border", "the border is learnt, too; crop it"),
    "colour cast": ("image|s with a strong colour cast", "the tint is learnt, too; correct the white balance"),
}
"""kind -> (what to call them, the plural's ending marked; why it matters and what to do)"""
LABELS: dict[FaultKind, str] = {
    "leak": "looks like a held-out one", "near duplicate": "near-duplicate", "blurred": "blurred",
    "upscaled": "larger than its detail", "border": "plain border", "colour cast": "colour cast",
}  # fmt: skip
"""what to call one"""
_LEFT_OUT = {"leak": "training image|s like a held-out one", "near duplicate": "near-duplicate|s"}
"""reason -> what is left out, the plural's ending marked"""
_NAMED = 3


def findings_lines(found: AuditFindings, card: DatasetCard) -> list[str]:
    """One sentence for each sort of fault with the first pictures that have it, then those on the whole dataset."""
    lines = []
    for kind in FAULT_KINDS:
        if some := found.of_kind(kind):
            called, advice = ADVICE[kind]
            named = _some([f"{name} ({detail})" for name, detail in some.items()])
            lines.append(f"{len(some)} {several(called, len(some))}: {named}: {advice}")
    lines += class_image_lines(found.class_images)
    return [*lines, *background_lines(found, card), *caption_sentences(found.captions, card.trigger)]


def background_lines(found: AuditFindings, card: DatasetCard) -> list[str]:
    if not (one := found.background):
        return []
    count = f"all {one.of}" if one.images == one.of else f"{one.images} of {one.of}"
    colour = colour_name(one.colour)
    said = f"{count} images have one background ({f'patterned, {colour} on average' if one.patterned else colour})"
    if card.kind == "style":
        return [f"{said}: it is learnt as part of the style, which is right if you want it"]
    subject = repr(card.trigger) if card.trigger else "the product"
    return [
        f"{said}: it is learnt as part of {subject}, and prompts for another background work less well; add photos "
        "taken elsewhere, or mask the product"
    ]


def class_image_lines(leaks: Sequence[ClassLeak]) -> list[str]:
    """A sentence on the class images that a training image shows."""
    if not leaks:
        return []
    called = several("class image|s that a training one shows", len(leaks))
    named = _some([f"{one.file} ({looks_like(f'the training {one.like}', one.mirrored)})" for one in leaks])
    return [f"{len(leaks)} {called}: {named}: the class word is taught the product, too; leave them out"]


def fixes(found: AuditFindings) -> list[str]:
    """What `prepare` would repair, a phrase each."""
    counts: Counter[str] = Counter(r.reason for r in found.left_out)
    phrases = [f"leave out {n} {several(what, n)}" for reason, what in _LEFT_OUT.items() if (n := counts[reason])]
    if n := len(found.cropped):
        phrases.append(f"crop the border of {n} {several('image|s', n)}")
    return phrases


def unrepaired(found: AuditFindings) -> dict[FaultKind, list[str]]:
    """Kind -> the pictures that have such a fault when all is repaired that can be."""
    left: dict[FaultKind, list[str]] = {}
    gone = {r.file for r in found.left_out}
    for kind in FAULT_KINDS:
        mended = {*gone, *(found.cropped if kind == "border" else ())}
        if names := [name for name in found.of_kind(kind) if name not in mended]:
            left[kind] = names
    return left


def several(what: str, number: int) -> str:
    """`image|s that ...` of one or more."""
    before, _, after = what.partition("|")
    return before + (after if number > 1 else after.removeprefix("s"))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
