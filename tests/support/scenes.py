"""Drawn scenes with sharp edges, no two alike, and what happens to pictures on their way."""

import io
import random
from pathlib import Path

from PIL import Image, ImageDraw

SCENE_PX = 160


def scene(seed: int, px: int = SCENE_PX, ground: str = "") -> Image.Image:
    """Shapes on a ground of soft colours, or of one."""
    chance = random.Random(f"scene {seed}")
    coarse = Image.frombytes("RGB", (5, 5), chance.randbytes(75))
    image = Image.new("RGB", (px, px), ground) if ground else coarse.resize((px, px), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for shape in (draw.ellipse, draw.rectangle, draw.ellipse, draw.rectangle, draw.ellipse):
        left, top = (chance.randint(px // 10, px * 6 // 10) for _ in range(2))
        width, height = (chance.randint(px // 12, px // 3) for _ in range(2))
        shape((left, top, left + width, top + height), fill=tuple(chance.randbytes(3)))
    return image


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def barred(image: Image.Image, px: int, colour: str = "black") -> Image.Image:
    """With bars above and below."""
    wider = Image.new("RGB", (image.width, image.height + 2 * px), colour)
    wider.paste(image, (0, px))
    return wider


def scenes(folder: Path, count: int, caption: str = "a sks mug, view {}", ground: str = "") -> Path:
    """So many scenes with captions of their own."""
    folder.mkdir(parents=True)
    for i in range(count):
        scene(i, ground=ground).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption.format("abcdefghijklmnop"[i]))
    return folder
