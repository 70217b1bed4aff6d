"""Masks for the pictures of a prepared dataset that have none; a person's masks stay as they are."""

import posixpath
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from finetune import writing
from finetune.captioning.table import CaptionTable
from finetune.data.audit import auditing
from finetune.data.example import Example
from finetune.data.folder import Rules
from finetune.data.prepared_masks import MAKER, MASKS_FOLDER, mask_name, mask_png
from finetune.data.text.caption_files import TABLE
from finetune.data.text.wording import CaptionWords
from finetune.errors import DataError, Interrupted, RunError, action
from finetune.events import Advanced, Event, Stage, Warned, quietly
from finetune.masking.masker import Masker, screened_mask
from finetune.saving import write_bytes

PROGRAM = "masked by finetune"
"""as the masks that are made here are signed"""


class NotMasked(NamedTuple):
    """A picture without a mask, and why."""

    file: str
    reason: str


class Masked(NamedTuple):
    """What masking a dataset came to."""

    folder: Path
    masks: dict[str, str]
    """picture -> the mask that was made just now"""
    kept: int
    """masks that were there and stay"""
    refused: tuple[NotMasked, ...]


def mask_dataset(
    path: Path, masker: Callable[[str | None], Masker], again: bool = False
) -> Generator[Event, None, Masked]:
    """Masks the pictures that have no mask; `again`: those too that were masked here. What is written by then stays
    when this is left, and the next call goes on.

    masker: made for the dataset's class word, when there is something to mask.

    Raises:
        DataError: the dataset is not prepared, or none of the answers is a mask.
        Interrupted: Ctrl-C.
    """
    report = yield from auditing(path, CaptionWords(allow_uncaptioned=True), Rules(decode=False))
    if not report.prepared:
        raise DataError(
            f"{path} is not a prepared dataset, and masks must fit pictures as they are trained on: upright",
            "prepare it first, then mask the result",
            action("prepare", source=path, out="DIR"),
        )
    if report.problems:
        raise DataError(f"{path}: " + "; ".join(report.problems), "correct this first, then mask the pictures")
    used = _without_shared(report.used)
    wanted = [e for e in used if e.mask is None or (again and _is_ours(e.mask.path))]
    kept = len(used) - len(wanted)
    if not wanted:
        return Masked(report.root / MASKS_FOLDER, {}, kept, ())
    writing.try_folder(report.root, (TABLE,), hint=writing.FREE_IT)
    asked = masker(report.card.class_word)
    asked.check()
    made, refused = yield from _masks(report.root, used, wanted, asked)
    if not made:
        raise DataError(
            f"{path}: none of {len(refused)} pictures got a mask: {_counted(refused)}",
            "use another `with_model` or `command`, or draw masks by hand",
        )
    if refused:
        yield Warned(
            f"{len(refused)} of {len(wanted)} pictures got no mask, and are learnt whole: {_counted(refused)}; another "
            "`with_model` or `command` masks just these"
        )
    return Masked(report.root / MASKS_FOLDER, made, kept, tuple(refused))


mask_quietly = quietly(mask_dataset)


def _masks(
    root: Path, used: Sequence[Example], wanted: Sequence[Example], masker: Masker
) -> Generator[Event, None, tuple[dict[str, str], list[NotMasked]]]:
    made, refused, done, table = dict[str, str](), list[NotMasked](), 0, CaptionTable(root)
    taken = {e.mask.path.relative_to(root).as_posix().casefold() for e in used if e.mask}
    yield Stage("masks", len(wanted))
    try:
        while some := wanted[done : done + masker.batch]:
            for example, answer in zip(some, map(screened_mask, masker([e.path for e in some])), strict=True):
                if answer.grey is None:
                    refused.append(NotMasked(example.name, answer.problem))
                    continue
                made[example.name] = _written(root, example, answer.grey, taken)
            done += len(some)
            yield Advanced(done)
    except KeyboardInterrupt as e:
        raise Interrupted(f"stopped: {len(made)} masks are written", "run the same command again to continue") from e
    finally:
        if made:
            table.put_cells({name: {"mask_file_name": mask} for name, mask in made.items()})
    return made, refused


def _written(root: Path, example: Example, grey: Image.Image, taken: set[str]) -> str:
    own = example.mask and example.mask.path.relative_to(root).as_posix()
    name = own or mask_name(example.name, taken)
    file = root / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(mask_png(grey, PROGRAM), file)
    except OSError as e:
        raise RunError(f"cannot write {file}: {e.strerror}", "free some space, or make it writable") from e
    return name


def _without_shared(used: Sequence[Example]) -> list[Example]:
    """Without masks that were made here and lie over two pictures of one name: the call that made them for one was
    killed before it said for which."""
    times = Counter(e.mask.path for e in used if e.mask)
    shared = {file for file, count in times.items() if count > 1 and _is_ours(file)}
    return [e._replace(mask=None) if e.mask and e.mask.path in shared else e for e in used]


def _is_ours(file: Path) -> bool:
    try:
        with Image.open(file, formats=("PNG",)) as mask:
            return mask.info.get(MAKER) == PROGRAM
    except (OSError, ValueError, SyntaxError):
        return False


def _counted(refused: Sequence[NotMasked]) -> str:
    first = {one.reason: posixpath.basename(one.file) for one in reversed(refused)}
    by = Counter(one.reason for one in refused).most_common()
    return "; ".join(f"{reason} ({count}, such as {first[reason]})" for reason, count in by)
