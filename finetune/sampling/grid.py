"""Sheets: titled, labelled grids of pictures that stay narrow enough to read, whatever the number of columns."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

SHOWN_PX, LARGEST_PX = 192, 448
"""Least and greatest side of a picture in a sheet; smaller ones are enlarged, larger ones reduced."""
WIDTH_PX = 1600
"""No sheet is wider."""
_MOST_LABEL = 400
"""of a label: a longer prompt would make a page of its own, and of some megabytes one that no memory holds"""
_MARGIN, _LABEL, _TITLE = 8, 18, 30
_LABELS_PX = 176
"""width of the column of row labels, at most"""
_INK, _PALE, _PAPER = "#202124", "#5f6368", "white"

Labelled = tuple[str, Sequence[Image.Image]]


class _Text(NamedTuple):
    """Lines of one size and colour."""

    lines: list[str]
    font: Any
    line_px: int
    fill: str = _INK

    @property
    def height(self) -> int:
        return len(self.lines) * self.line_px

    def draw(self, pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
        for n, line in enumerate(self.lines):
            pen.text((x, y + n * self.line_px), line, fill=self.fill, font=self.font)


def grid(rows: Sequence[Labelled], columns: Sequence[str], title: str = "", details: str = "") -> Image.Image:
    """One sheet of all pictures: a row for each (label, its pictures), a column for each label of `columns`.

    The label of a row stands on its left, that of a column above it. Columns that do not fit beside each other go on in
    bands below, each with all rows, so that pictures to compare stay under each other. Every row has a picture for each
    column. Pictures are shown in squares of SHOWN_PX to LARGEST_PX px, after the largest; the sheet is at most WIDTH_PX
    wide. title: what the sheet is; details: a line under it, such as base and seeds.
    """
    side = min(max(SHOWN_PX, *(max(i.size) for _, images in rows for i in images)), LARGEST_PX)
    small = ImageFont.load_default(13)
    names = [_Text(_wrap(label, small, _LABELS_PX), small, _LABEL) for label, _ in rows]
    left = max(round(small.getlength(line)) for name in names for line in name.lines) + 2 * _MARGIN
    heads = [_Text(_wrap(label, small, side), small, _LABEL) for label in columns]
    bands = _bands(len(columns), (WIDTH_PX - left) // (side + _MARGIN))
    shown = len(bands[0]) * (side + _MARGIN)
    width = max(left + shown, min(WIDTH_PX, 3 * SHOWN_PX)) if title or details else left + shown
    top = _head(title, details, width - 2 * _MARGIN)
    tops, y = [], sum(text.height for text in top) + (2 * _MARGIN if top else 0)
    for band in bands:
        tops.append(y)
        y += max(heads[c].height for c in band) + 2 * _MARGIN + len(rows) * (side + _MARGIN)
    page = Image.new("RGB", (width, y), _PAPER)
    pen, down = ImageDraw.Draw(page), _MARGIN
    for text in top:
        text.draw(pen, _MARGIN, down)
        down += text.height
    for band, start in zip(bands, tops, strict=True):
        _draw_band(page, band, start, left, side, heads, names, rows)
    return page


def row_label(name: str, file: str) -> str:
    """A row of a sheet in words: "base" is the base model, another is made with that adapter file."""
    return "base model" if name == "base" else f"with {file}"


def made_with(base: str, steps: int, guidance: float) -> str:
    """The line under a sheet's title. steps: of denoising."""
    return f"base model: {base}; {steps} denoising steps, guidance {guidance:g}"


def _bands(columns: int, fit: int) -> list[range]:
    """Runs of columns, about equally long, of which as many fit beside each other."""
    count = -(-columns // max(fit, 1))
    length = -(-columns // count)
    return [range(start, min(start + length, columns)) for start in range(0, columns, length)]


def _head(title: str, details: str, width: int) -> list[_Text]:
    """What stands above the pictures."""
    large, small = ImageFont.load_default(20), ImageFont.load_default(14)
    texts = (_Text(_wrap(title, large, width), large, _TITLE), _Text(_wrap(details, small, width), small, 20, _PALE))
    return [text for text in texts if text.lines != [""]]


def _draw_band(
    page: Image.Image, band: range, top: int, left: int, side: int, heads: Sequence[_Text], names: Sequence[_Text],
    rows: Sequence[Labelled],
) -> None:  # fmt: skip
    """All rows of some columns, their labels above and beside them."""
    pen, tallest = ImageDraw.Draw(page), max(heads[c].height for c in band)
    first = top + tallest + 2 * _MARGIN
    for n, c in enumerate(band):
        x = left + n * (side + _MARGIN)
        heads[c].draw(pen, x, top + _MARGIN + tallest - heads[c].height)
        for r, (_, images) in enumerate(rows):
            page.paste(_fitted(images[c], side), (x, first + r * (side + _MARGIN)))
    for r, name in enumerate(names):
        name.draw(pen, _MARGIN, first + r * (side + _MARGIN) + max(0, side - name.height) // 2)


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """Fitted into the middle of a square of that side."""
    scale = side / max(image.size)
    fitted = image.convert("RGB").resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS
    )
    page = Image.new("RGB", (side, side), _PAPER)
    page.paste(fitted, ((side - fitted.width) // 2, (side - fitted.height) // 2))
    return page


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Lines no wider than width; a word that is wider is broken. Of a text beyond _MOST_LABEL the beginning."""
    lines = [""]
    shown = text if len(text) <= _MOST_LABEL else f"{text[: _MOST_LABEL - 3]}..."
    for word in shown.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            lines += [""] if font.getlength(lines[-1] + letter) > width else []
            lines[-1] += letter
    return lines
