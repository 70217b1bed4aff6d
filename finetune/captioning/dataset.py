"""Captions for the pictures of a folder that nobody captioned; a person's captions stay as they are."""

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import NamedTuple

from finetune import writing
from finetune.captioning.captioner import Captioner, screened
from finetune.captioning.table import CaptionTable
from finetune.data.audit import Audit, auditing
from finetune.data.example import CARD, Example
from finetune.data.folder import Rules, walk
from finetune.data.prepare import write_card
from finetune.data.rights.licence_files import SIDECAR
from finetune.data.text import caption_files
from finetune.data.text.caption_files import TABLE, first_three
from finetune.data.text.captions import with_trigger
from finetune.data.text.wording import CaptionOrigin, CaptionWords
from finetune.errors import DataError, Interrupted
from finetune.events import Advanced, Event, Stage, Warned


class NotCaptioned(NamedTuple):
    """A picture without a caption, and why."""

    file: str
    reason: str
    answer: str
    """what the captioner said"""


class Captioned(NamedTuple):
    """What captioning a folder came to."""

    table: Path
    captions: dict[str, str]
    """picture -> the caption that a model gave it just now"""
    kept: dict[CaptionOrigin, int]
    """captions that were there and stay, by who wrote them"""
    refused: tuple[NotCaptioned, ...]


def caption_dataset(
    path: Path, words: CaptionWords, captioner: Callable[[CaptionWords], Captioner], again: bool = False
) -> Generator[Event, None, Captioned]:
    """Captions the pictures that have none, or only the template; `again`: those too that a file's name or a model
    captioned. What is written by then stays when this is left, and the next call goes on.

    captioner: made from the words of the dataset, when there is something to caption.

    Raises:
        DataError: the folder's captions are not in one metadata.jsonl, or no answer is a caption.
        Interrupted: Ctrl-C.
    """
    report = yield from auditing(path, words._replace(allow_uncaptioned=True), Rules(decode=False))
    wanted = [e for e in report.used if _is_open(e, again)]
    kept = Counter[CaptionOrigin](e.origin for e in report.used if not _is_open(e, again))
    if not wanted:
        return Captioned(report.root / TABLE, {}, dict(kept), ())
    _refuse_other_sources(path, report)
    writing.try_folder(report.root, (TABLE,), hint=writing.FREE_IT)
    own = CaptionWords(report.card.trigger, report.card.class_word, kind=report.card.kind)
    asked = captioner(own)
    asked.check([e.path for e in wanted])
    made, refused = yield from _captions(CaptionTable(report.root), wanted, asked, own)
    if not made:
        raise DataError(
            f"{path}: none of {len(refused)} answers can be used as a caption: {_counted(refused)}",
            "use another vocabulary, `with_model` or `command`",
        )
    if report.prepared:
        described = {"captions": TABLE, "allow_uncaptioned": False if not refused else report.card.allow_uncaptioned}
        write_card(report.card.model_copy(update=described), report.root)
    if refused:
        yield Warned(f"{len(refused)} of {len(wanted)} pictures got no caption: {_counted(refused)}")
    return Captioned(report.root / TABLE, made, dict(kept), tuple(refused))


def _is_open(example: Example, again: bool) -> bool:
    return (
        not example.caption
        or example.origin in ("template", "folder")
        or (again and example.origin in ("filename", "model"))
    )


def _captions(
    table: CaptionTable, wanted: Sequence[Example], captioner: Captioner, words: CaptionWords
) -> Generator[Event, None, tuple[dict[str, str], list[NotCaptioned]]]:
    made, refused, done = dict[str, str](), list[NotCaptioned](), 0
    yield Stage("captions", len(wanted))
    try:
        while some := wanted[done : done + captioner.batch]:
            answers = list(zip(some, map(screened, captioner([e.path for e in some])), strict=True))
            refused += [NotCaptioned(e.name, a.problem, a.text) for e, a in answers if a.problem]
            if good := {e.name: with_trigger(a.text, words) for e, a in answers if not a.problem}:
                table.put(good)
            made |= good
            done += len(some)
            yield Advanced(done)
    except KeyboardInterrupt as e:
        raise Interrupted(f"stopped: {len(made)} captions are written", "run the same command again to continue") from e
    return made, refused


def _refuse_other_sources(path: Path, report: Audit) -> None:
    """New captions go into one metadata.jsonl in the folder itself: beside other sources they would be a conflict."""
    names = [name for name in walk(report.root).files if name != CARD and not name.lower().endswith(SIDECAR)]
    found = caption_files.find_captions(report.root, names)
    if found.problems:
        raise DataError(f"{path}: " + "; ".join(found.problems), "correct this first, then caption the pictures")
    others = sorted(found.files - {TABLE})
    if others:
        raise DataError(
            f"{path} has captions in {first_three(others)}, and new ones would go to {TABLE}: two sources of captions",
            "prepare a dataset from it first (`allow_uncaptioned`), then caption that",
        )


def _counted(refused: Sequence[NotCaptioned]) -> str:
    by = Counter(one.reason for one in refused)
    return "; ".join(f"{reason} ({count}, such as {next(o.file for o in refused if o.reason == reason)})"
                     for reason, count in by.most_common())  # fmt: skip
