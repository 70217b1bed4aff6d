"""Training pictures of the pocket base, as a prepared dataset: `python data/render_pictures.py OUT`."""

import json
import random
from pathlib import Path
from typing import Annotated

import icons
import styles
import typer
from PIL import Image
from styles import Flat

CARD = """format = 1
license = "Rendered from Noto Color Emoji, copyright Google, SIL Open Font License 1.1"
source = "data/render_pictures.py"
captions = "metadata.jsonl"
images = {count}
seen = {count}
"""


def main(
    out: Path,
    count: int = 40000,
    px: Annotated[int, typer.Option(help="64 or 128: the side of a picture")] = 64,
    seed: str = "train",
    twos: Annotated[float, typer.Option(help="share of the other pictures with two objects")] = 0.15,
    flat: Annotated[float, typer.Option(help="share of pictures in a flat style")] = 0.0,
) -> None:
    (out / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        shown, name = picture(seed, number, twos, flat), f"images/{number:06d}.png"
        pixels = styles.stylised(shown.placed, shown.brand, px) if isinstance(shown, Flat) else icons.render(shown, px)
        Image.fromarray(pixels).save(out / name, compress_level=1)
        rows.append(json.dumps({"file_name": name, "text": shown.caption}))
    (out / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (out / "dataset.toml").write_text(CARD.format(count=count), encoding="utf-8")


def picture(seed: str, number: int, twos: float, flat: float) -> icons.Scene | Flat:
    """What the number-th picture shows."""
    if random.Random(f"{seed}/{number}/kind").random() < flat:
        return styles.flat(seed, number)
    return icons.scene(seed, number, twos=twos)


if __name__ == "__main__":
    typer.run(main)
