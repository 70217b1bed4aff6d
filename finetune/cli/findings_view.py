"""What the audit of looks and captions found, in lines and as JSON. Imports the images' libraries."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console

from finetune.data.audit import Audit
from finetune.data.images.colours import colour_name
from finetune.data.quality.advice import findings_lines, fixes
from finetune.data.quality.faults import AuditFindings
from finetune.planning.encoders import EncoderReport, encoder_sentences
from finetune.reporting.markup import escape


def show_findings(audit: Audit, found: AuditFindings, encoders: Sequence[EncoderReport]) -> None:
    """A line for each sort of thing that was found."""
    console = Console(highlight=False, emoji=False)
    for sentence in findings_lines(found, audit.card):
        console.print(f"[yellow]audit[/yellow]    {escape(sentence)}", soft_wrap=True)
    for sentence in encoder_sentences(encoders, audit.card.trigger):
        console.print(f"[dim]{escape(sentence)}[/dim]", soft_wrap=True)


def fix_line(audit: Audit, found: AuditFindings) -> str:
    """What `prepare` would repair; "" where that is nothing, or where other things come first."""
    return "" if audit.problems else ", ".join(fixes(found))


def findings_json(audit: Audit, found: AuditFindings, encoders: Sequence[EncoderReport]) -> dict[str, object]:
    ground, captions = found.background, found.captions
    return {
        "thresholds": found.thresholds._asdict(),
        "audit": findings_lines(found, audit.card),
        "near_duplicates": [
            {"best": group.best, "others": [one._asdict() for one in group.others]} for group in found.groups
        ],
        "class_images": [one._asdict() for one in found.class_images],
        "background": ground and ground._asdict() | {"colour": colour_name(ground.colour)},
        "captions": {
            "written": captions.captions,
            "distinct": captions.distinct,
            "in_every_caption": dict(captions.fused),
            "repeated": [{"caption": caption, "images": number} for caption, number in captions.repeated],
            "encoders": [
                one._asdict() | {"trigger": list(one.trigger), "mean": round(one.mean, 1)} for one in encoders
            ],
        },
        "fix": {
            "would": fixes(found),
            "left_out": [one._asdict() for one in found.left_out],
            "cropped": [{"file": name, "to": list(box)} for name, box in found.cropped.items()],
        },
    }


def with_faults(rows: Mapping[str, Iterable[Any]], found: AuditFindings) -> dict[str, Iterable[object]]:
    """The rows of the images with their flags and measures."""
    return {key: (_with(row, found) for row in some) if key == "images" else some for key, some in rows.items()}


def _with(row: dict[str, object], found: AuditFindings) -> dict[str, object]:
    name = str(row["file"])
    flags = [{"flag": fault.kind, "detail": fault.detail} for fault in found.faults.get(name, ())]
    looks = found.looks(name)
    if looks is None:
        return row | {"flags": flags}
    measures = {
        "fingerprint": f"{looks.fingerprint:016x}",
        "detail": round(looks.detail, 2),
        "borders": list(looks.borders),
        "ground": colour_name(looks.ground),
        "flatness": round(looks.flatness, 2),
        "cast": round(looks.cast, 2),
    }
    return row | {"flags": flags, "measures": measures}
