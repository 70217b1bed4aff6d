"""What all pages are made with: templates that escape every text, pictures inside the file, one look.

A page is one file: no script is needed to read it, and nothing is loaded from elsewhere (its own policy forbids it).
"""

import base64
import io
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from markupsafe import Markup
from PIL import Image

from finetune import __version__
from finetune import tensors as weights

TEMPLATES = Path(__file__).parent / "templates"
TEMPLATE_ERROR = TemplateError
"""what a template raises that is given something wrong"""
_QUALITY = 82
"""of JPEG pictures; those that are smaller as PNG, such as flat icons, are PNG"""


@cache
def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    found.globals["version"] = __version__
    return found


def render(template: str, **values: object) -> str:
    """The text of a page; every value is escaped but Markup."""
    return _environment().get_template(template).render(values)


def write_page(text: str, path: Path) -> None:
    """Whole or not at all: who reads it meanwhile sees the page before.

    Raises:
        OSError: the disk is full, or gone.
    """
    weights.write_bytes(text.encode("utf-8", "replace"), path)


def inlined(image: Image.Image, px: int) -> Markup:
    """A picture as the `src` of an <img>: RGB, its longer side at most px."""
    shown = image.convert("RGB")
    if max(shown.size) > px:
        shown.thumbnail((px, px), Image.Resampling.LANCZOS)
    packed = {kind: _packed(shown, kind) for kind in ("PNG", "JPEG")}
    kind = min(packed, key=lambda one: len(packed[one]))
    return Markup(f"data:image/{kind.lower()};base64,{base64.b64encode(packed[kind]).decode()}")


def _packed(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, quality=_QUALITY, optimize=True)
    return stream.getvalue()
