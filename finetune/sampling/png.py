"""Pictures as PNG files that carry what they were made from."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from finetune.saving import write_bytes


def write_png(image: Image.Image, path: Path, facts: Mapping[str, str]) -> None:
    """A PNG whose text chunks say how it was made; `parameters` is the line web UIs show. Raises OSError."""
    info = PngInfo()
    for key, text in facts.items():
        info.add_itxt(key, text)
    info.add_itxt("parameters", _parameters(facts))
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    image.save(stream, "PNG", pnginfo=info)
    write_bytes(stream.getvalue(), path)


def _parameters(facts: Mapping[str, str]) -> str:
    rest: Iterable[str] = (f"{k}: {v}" for k, v in facts.items() if k not in ("prompt", "negative") and v)
    negative = f"\nNegative prompt: {facts['negative']}" if facts.get("negative") else ""
    return f"{facts.get('prompt', '')}{negative}\n{', '.join(rest)}"
