"""Repairs of what the audit found, carried out while a dataset is prepared: the source stays as it is."""

from collections.abc import Generator
from dataclasses import replace

from finetune.data.audit import Audit
from finetune.data.example import Example
from finetune.data.images.buckets import Size
from finetune.data.quality.advice import ADVICE, several, unrepaired
from finetune.data.quality.faults import USUAL_RESOLUTION, AuditFindings, find_faults
from finetune.data.quality.thresholds import AuditThresholds
from finetune.data.text.captions import CaptionNote
from finetune.events import Event, Warned

_CHANGES = {"near duplicate": "near-duplicate left out", "leak": "training image like a held-out one left out"}
_CROPPED = "plain border cropped"
_NAMED = 5


def repairing(report: Audit, thresholds: AuditThresholds) -> Generator[Event, None, Audit]:
    """The audit of what is left when all is repaired that can be; tells what cannot."""
    found = find_faults(report, USUAL_RESOLUTION, thresholds)
    for kind, names in unrepaired(found).items():
        called, advice = ADVICE[kind]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield Warned(
            f"not repaired: {len(names)} {several(called, len(names))}: {', '.join(names[:_NAMED])}{more}: {advice}"
        )
    return repaired(report, found)


def repaired(report: Audit, found: AuditFindings) -> Audit:
    """Without the copies, and with the sizes of what is cropped; each of it a note on its file."""
    gone = {r.file: r for r in found.left_out}
    pictures = dict(report.pictures)
    for name, box in found.cropped.items():
        info = pictures[name].info._replace(size=_size(found, name), crop=box)
        pictures[name] = pictures[name]._replace(info=info)
    used = tuple(_cropped(e, found) for e in report.used if e.name not in gone)
    notes = [note for note in report.notes if note.file not in gone]
    notes += [CaptionNote(name, _CHANGES[one.reason]) for name, one in gone.items()]
    notes += [CaptionNote(name, _CROPPED) for name in found.cropped]
    rejected = tuple(sorted([*report.rejected, *found.left_out]))
    return replace(report, used=used, rejected=rejected, notes=tuple(notes), pictures=pictures)


def _cropped(example: Example, found: AuditFindings) -> Example:
    return example._replace(size=_size(found, example.name)) if example.name in found.cropped else example


def _size(found: AuditFindings, name: str) -> Size:
    left, top, right, bottom = found.cropped[name]
    return Size(right - left, bottom - top)
