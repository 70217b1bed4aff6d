"""A comparison as one page and one sheet: which adapter to take, at which weight, and every picture of it."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from finetune.errors import Action, RunError, action
from finetune.evaluation.compare import Comparison, ComparisonRequest, ComparisonRow, as_json, asked_json
from finetune.evaluation.meaning import MEANINGS, ScoreMeaning
from finetune.events import Event
from finetune.pages.html import inlined, render, write_page
from finetune.pages.report import Wording
from finetune.pages.text import plain_text
from finetune.reading import exists, read_json
from finetune.sampling.grid import grid
from finetune.sampling.png import write_png
from finetune.sampling.request import SampleRequest
from finetune.tensors import write_bytes
from finetune.writing import try_folder

PAGE_FILE, SHEET_FILE, TABLE_FILE, PICTURES = "comparison.html", "comparison.png", "comparison.json", "pictures"
SHOWN_PX = 256
"""side of a picture on the page, at most"""


class Cell(NamedTuple):
    """A picture of the page."""

    source: Markup
    alt: str
    width: int
    height: int
    command: str
    """generates it again"""


class PageRow(NamedTuple):
    label: str
    seen: str
    scores: dict[str, Any]
    best: bool
    cells: list[Cell]


def claim(folder: Path, wanted: ComparisonRequest) -> None:
    """The folder is new, or holds this very comparison, which goes on. Nothing is written.

    Raises:
        RunError: it holds another one, or something else.
    """
    free = next(p for n in range(2, 10**6) if not exists(p := folder.with_name(f"{folder.name}-{n}")))
    asked = asked_json(wanted)
    if exists(folder / TABLE_FILE):
        try:
            same = read_json(folder / TABLE_FILE, RunError, "").get("asked") == asked
        except RunError:
            same = False
        if not same:
            raise RunError(f"{folder} holds another comparison", f"choose another `out`, such as {free}")
        return
    try_folder(folder, (PICTURES,))
    if exists(folder) and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty", f"choose another `out`, such as {free}")


def begun(
    events: Generator[Event, None, Comparison], wanted: ComparisonRequest, folder: Path
) -> Generator[Event, None, Comparison]:  # fmt: skip
    """The same events; when the first one shows that it can be done, the folder is this comparison's.

    Raises:
        RunError: the folder cannot be written.
    """
    first = next(events)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(json.dumps({"asked": asked_json(wanted)}, indent=1).encode(), folder / TABLE_FILE)
    except OSError as e:
        raise RunError(f"cannot write into {folder}: {e.strerror}", "choose another `out`") from e
    yield first
    return (yield from events)


def write_comparison(
    found: Comparison, wanted: ComparisonRequest, folder: Path, worded: Wording = str
) -> Path:  # fmt: skip
    """The page, the sheet and the table; worded: how the page writes calls. Returns where the page is.

    Raises:
        RunError: they cannot be written.
    """
    told = as_json(found, wanted)
    try:
        write_page(page_text(found, wanted, worded), folder / PAGE_FILE)
        heads = [f"{column.prompt} (seed {column.seed})" for column in found.columns]
        rows = [(_sheet_label(row), row.pictures) for row in found.rows]
        sheet = grid(rows, heads, "Comparison", f"base {told['base']}; {_taken(found)}")
        write_png(sheet, folder / SHEET_FILE, {"prompt": " | ".join(c.prompt for c in found.columns)})
        write_bytes(json.dumps(told, indent=1).encode(), folder / TABLE_FILE)
    except OSError as e:
        raise RunError(f"cannot write into {folder}: {e.strerror}", "free some space") from e
    return folder / PAGE_FILE


def page_text(found: Comparison, wanted: ComparisonRequest, worded: Wording = str) -> str:
    """The page."""
    names = [name for name in MEANINGS if any(name in row.scores for row in found.rows)]
    meanings: dict[str, ScoreMeaning] = {name: MEANINGS[name] for name in names}
    rows = [_page_row(found, n, row, worded) for n, row in enumerate(found.rows)]
    best = None if found.best is None else found.rows[found.best]
    return render(
        "comparison.html", found=found, rows=rows, meanings=meanings, best=best,
        columns=[(plain_text(c.prompt), c.seed) for c in found.columns], base=as_json(found, wanted)["base"],
        adapters=list(dict.fromkeys(row.adapter for row in found.rows if row.adapter)),
    )  # fmt: skip


def _page_row(found: Comparison, number: int, row: ComparisonRow, worded: Wording) -> PageRow:
    cells = [_cell(found.base, row, n, worded) for n in range(len(row.pictures))]
    return PageRow(row.label, row.seen.replace("/", " of "), row.scores, number == found.best, cells)


def _cell(base: str, row: ComparisonRow, number: int, worded: Wording) -> Cell:
    image, request = row.pictures[number], row.requests[number]
    width, height = (max(1, round(side * min(1.0, SHOWN_PX / max(image.size)))) for side in image.size)
    alt = f"{row.label}: {plain_text(request.prompt)}, seed {request.seed}"
    return Cell(inlined(image, SHOWN_PX), alt, width, height, worded(repeated(base, row, request)))


def repeated(base: str, row: ComparisonRow, request: SampleRequest) -> Action:
    """The call that generates the picture again."""
    adapter = f"{row.adapter.file}:{row.weight:g}" if row.adapter else ""
    size = f"{request.width}x{request.height}"
    return action("sample", base=base, adapter=adapter, prompt=request.prompt, seed=request.seed, steps=request.steps,
                  guidance=f"{request.guidance:g}", size=size, out="again")  # fmt: skip


def _taken(found: Comparison) -> str:
    return found.why if found.best is None else f"take {found.rows[found.best].label}: {found.why}"


def _sheet_label(row: ComparisonRow) -> str:
    likeness = row.scores.get("likeness")
    return row.label + (f", likeness {likeness.value:.2f}, seen {row.seen}" if likeness else "")
