"""Labelled grids of pictures."""

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SHOWN_PX = 192
"""Least side of a picture in a grid; smaller ones are enlarged."""
_MARGIN, _LABEL = 8, 18


def grid(rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str]) -> Image.Image:
    """A labelled grid: one row of pictures per label, the column labels above."""
    side = max(SHOWN_PX, *(max(i.size) for _, images in rows for i in images))
    font = ImageFont.load_default(13)
    names = [_wrap(label, font, side) for label, _ in rows]
    left = max(round(font.getlength(line)) for lines in names for line in lines) + 2 * _MARGIN
    width = left + len(columns) * (side + _MARGIN)
    top = _LABEL * max(len(_wrap(c, font, side)) for c in columns) + 2 * _MARGIN
    page = Image.new("RGB", (width, top + len(rows) * (side + _MARGIN)), "white")
    pen = ImageDraw.Draw(page)
    for c, label in enumerate(columns):
        for n, line in enumerate(_wrap(label, font, side)):
            pen.text((left + c * (side + _MARGIN), _MARGIN + n * _LABEL), line, fill="black", font=font)
    for r, (_, images) in enumerate(rows):
        y = top + r * (side + _MARGIN)
        for n, line in enumerate(names[r]):
            pen.text((_MARGIN, y + side // 2 + n * _LABEL), line, fill="black", font=font)
        for c, image in enumerate(images):
            page.paste(_enlarged(image, side), (left + c * (side + _MARGIN), y))
    return page


def _enlarged(image: Image.Image, side: int) -> Image.Image:
    """Fitted into the middle of a square of that side."""
    scale = side / max(image.size)
    fitted = image.convert("RGB").resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS
    )
    page = Image.new("RGB", (side, side), "white")
    page.paste(fitted, ((side - fitted.width) // 2, (side - fitted.height) // 2))
    return page


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Lines no wider than width; a word that is wider is broken."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            lines += [""] if font.getlength(lines[-1] + letter) > width else []
            lines[-1] += letter
    return lines
