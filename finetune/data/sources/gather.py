"""The audit of several sources as one: names that tell their source, duplicates across them, weights."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import fields, replace
from fractions import Fraction
from typing import NamedTuple

from finetune.data.attributes import LARGEST_WEIGHT
from finetune.data.audit import Audit, auditing, complaint
from finetune.data.examine import Twins
from finetune.data.example import DatasetCard, Example
from finetune.data.folder import Rejected, Rules
from finetune.data.sources.names import Source
from finetune.data.sources.staging import Staged
from finetune.data.text.captions import CaptionNote
from finetune.data.text.wording import CaptionWords
from finetune.errors import Action, DataError
from finetune.events import Event


class SourceFolder(NamedTuple):
    """A source with its folder."""

    source: Source
    staged: Staged


def gathering(parts: Sequence[SourceFolder], words: CaptionWords, rules: Rules) -> Generator[Event, None, Audit]:
    """All pictures of all sources. A single folder without a weight is audited as it ever was.

    Raises:
        DataError: a source has no such folder, or no image that those before it lack; prepared sources do not go
            together, or weights are too large.
    """
    several = len(parts) > 1
    reports, twins = [], Twins.none()
    for number, (source, staged) in enumerate(parts):
        label = f"{source.label}/" if several else ""
        report = yield from auditing(staged.root, words, rules, twins.of(label))
        _refuse_repeated(source, report, [part.source for part in parts[:number]])
        report = _with_staged(report, source, staged)
        reports.append(_labelled(report, label, source) if several else _weighted(report, source))
    return _merged(reports) if several else reports[0]


def complaint_of(parts: Sequence[SourceFolder], report: Audit) -> tuple[str, str, Action | None]:
    """(problem, hint, next step) for sources that cannot be prepared."""
    if len(parts) == 1:
        problem, hint, step = complaint(parts[0].source.path, report)
        if parts[0].source.kind == "folder":
            return problem, hint, step
    else:
        problem, _, _ = complaint(parts[0].source.path, report)
    named = ", ".join(part.source.written for part in parts)
    head, _, lines = problem.partition("\n")
    count = head.rpartition(": ")[2]
    if report.wordless:
        return f"{named}: {count}\n{lines}", "give `trigger` and `class_word`, and prepare again", None
    return f"{named}: {count}\n{lines}", "correct each problem in its source, then prepare again", None


def _refuse_repeated(source: Source, report: Audit, before: Sequence[Source]) -> None:
    """Raises DataError: sources before it have all its images. Left out in silence, its captions would be lost."""
    earlier = [one.detail.partition(" as ")[2] for one in report.rejected if one.reason == "exact duplicate"]
    where = [one.written for one in before if any(name.startswith(f"{one.label}/") for name in earlier)]
    if report.used or not where:
        return
    usable = "usable " if len(earlier) < len(report.rejected) else ""
    raise DataError(
        f"all {usable}images of {source.written} are also in {' and '.join(where)} ({len(earlier)})",
        f"leave {source.written} out, or name it before {where[0]} to use its own captions and weight for them",
    )


def _with_staged(report: Audit, source: Source, staged: Staged) -> Audit:
    """With what was refused before it was a file, and what a table without captions says of its pictures."""
    if source.kind == "folder":
        return report
    used = report.used
    if staged.attributes:
        used = tuple(e._replace(attributes=staged.attributes.get(e.name, e.attributes)) for e in used)
    rejected = tuple(sorted([*report.rejected, *staged.rejected]))
    problems = tuple(one.replace(str(staged.root), source.written) for one in report.problems)
    files = report.files + len(staged.rejected)
    card = report.card
    if source.hub:
        card = card.model_copy(update={"source": "@".join(filter(None, (source.hub, source.revision)))})
    return replace(report, used=used, rejected=rejected, files=files, problems=problems, card=card)


def _weighted(report: Audit, source: Source) -> Audit:
    if source.weight == 1:
        return report
    return replace(report, used=tuple(_heavier(e, source) for e in report.used))


def _heavier(example: Example, source: Source) -> Example:
    weight = float(Fraction(repr(example.attributes.weight)) * Fraction(repr(source.weight)))
    if not 0 < weight <= LARGEST_WEIGHT:
        raise DataError(
            f"{source.written}: {example.name} has the weight {example.attributes.weight:g}, and its source the weight "
            f"{source.weight:g}: together more than {LARGEST_WEIGHT:g}",
            "give smaller weights: only their ratios count",
        )
    return example._replace(attributes=example.attributes._replace(weight=weight))


def _labelled(report: Audit, label: str, source: Source) -> Audit:
    """With names that begin with the source's."""
    name = source.label
    return replace(
        report,
        used=tuple(e._replace(name=label + e.name) for e in _weighted(report, source).used),
        ignored=tuple(label + one for one in report.ignored),
        rejected=tuple(Rejected(label + r.file, r.reason, r.detail) for r in report.rejected),
        notes=_labelled_notes(report.notes, label, name),
        provenance=_labelled_notes(report.provenance, label, name),
        understood=tuple(f"{name}: {one}" for one in report.understood),
        problems=tuple(f"{name}: {one}" for one in report.problems),
        pictures={label + one: seen for one, seen in report.pictures.items()},
    )  # fmt: skip


def _labelled_notes(notes: Sequence[CaptionNote], label: str, name: str) -> tuple[CaptionNote, ...]:
    return tuple(CaptionNote(label + n.file if n.file else "", n.text if n.file else f"{name}: {n.text}")
                 for n in notes)  # fmt: skip


def _merged(reports: Sequence[Audit]) -> Audit:
    first = reports[0]
    whole: dict[str, object] = {}
    for field in fields(Audit):
        values = [getattr(report, field.name) for report in reports]
        if merge := _MERGED.get(field.name):
            whole[field.name] = merge(reports)
        elif isinstance(values[0], bool):
            whole[field.name] = any(values)
        elif isinstance(values[0], int):
            whole[field.name] = sum(values)
        elif isinstance(values[0], tuple):
            whole[field.name] = tuple(one for value in values for one in value)
        elif isinstance(values[0], Mapping):
            whole[field.name] = {name: one for value in values for name, one in value.items()}
    return replace(first, **whole)  # type: ignore[arg-type]


def _card(reports: Sequence[Audit]) -> DatasetCard:
    """Of prepared sources among them: what they have in common.

    Raises:
        DataError: they were prepared with different words.
    """
    cards = [report.card for report in reports]
    for name in ("trigger", "class_word", "kind", "template"):
        said = {getattr(card, name) for card in cards}
        if len(said) > 1:
            shown = ", ".join(sorted(repr(one) if one else "none" for one in said))
            raise DataError(
                f"the sources were prepared differently: `{name}` is {shown}",
                f"give the raw folders the `{name}` of the prepared one, or prepare all from their original sources",
            )
    told = {name: _listed([getattr(card, name) for card in cards]) for name in ("license", "source")}
    return cards[0].model_copy(update=told | {"allow_uncaptioned": any(card.allow_uncaptioned for card in cards)})


def _listed(said: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, said)))


def _caption_source(reports: Sequence[Audit]) -> str:
    found = {report.caption_source for report in reports}
    return found.pop() if len(found) == 1 else "several sources"


_MERGED: dict[str, Callable[[Sequence[Audit]], object]] = {
    "root": lambda reports: reports[0].root,
    "rejected": lambda reports: tuple(sorted(r for report in reports for r in report.rejected)),
    "wordless": lambda reports: any(report.wordless for report in reports),
    "caption_source": _caption_source,
    "card": _card,
    "prepared": lambda _: False,
}
"""fields that are not the sum of the sources' own"""
