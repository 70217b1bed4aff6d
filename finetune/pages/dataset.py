"""Pictures as training sees them: cut to their bucket, beside the caption that is learnt with them."""

from typing import NamedTuple

from markupsafe import Markup
from PIL import Image

from finetune.data.buckets import Size, fit
from finetune.data.dataset import Placed
from finetune.data.decode import open_rgb
from finetune.data.diagnose import Unusable
from finetune.data.wording import CaptionOrigin
from finetune.pages.html import inlined, render
from finetune.pages.text import plain_text, shown_text

WORTH_SAYING = 0.03
"""the share of a picture that may be cut off without a word about it"""
AUTHORS: dict[CaptionOrigin, str] = {
    "written": "by a person", "filename": "from the file name", "model": "by a captioning model",
    "template": "from the template",
}  # fmt: skip
_PIXEL_ART_PX = 96
"""Pictures up to this size are enlarged by whole pixels, which is what is trained on."""


class Thumbnail(NamedTuple):
    """A picture inside the page, or why there is none."""

    source: Markup
    """The `src` of an <img>."""
    size: Size
    """In px."""
    alt: str
    pixels: bool = False
    fault: str = ""
    """Why the file could not be read; then there is no source."""


def cropped(placed: Placed, px: int, trigger: str | None = None) -> Markup:
    """A <figure>: the picture as the crop leaves it, its longer side at most px, and beneath it the caption, the
    trigger marked, the file's name and who wrote the caption. A file that cannot be read costs its picture only.

    The page's style block needs `{% include "picture.css" %}`.
    """
    picture = thumbnail(placed, px)
    name, caption = shown_text(placed.example.name), shown_text(placed.example.caption, trigger)
    return Markup(
        render("cropped.html", picture=picture, name=name, caption=caption, row=placed, authors=AUTHORS,
               worth_saying=WORTH_SAYING)
    )  # fmt: skip


def thumbnail(placed: Placed, px: int) -> Thumbnail:
    """What is trained on: the picture cut to its bucket from the middle."""
    alt = f"{plain_text(placed.example.name)}, cut to {placed.bucket.width} x {placed.bucket.height}"
    try:
        image = fit(open_rgb(placed.example.path), placed.bucket)
    except Unusable as e:
        return Thumbnail(Markup(), Size(px, px), alt, fault=f"{e.reason}: {e.detail}")
    return _inside(image, px, alt)


def _inside(image: Image.Image, px: int, alt: str) -> Thumbnail:
    image.thumbnail((px, px), Image.Resampling.LANCZOS)
    return Thumbnail(inlined(image, px), Size(*image.size), alt, pixels=max(image.size) <= _PIXEL_ART_PX)
