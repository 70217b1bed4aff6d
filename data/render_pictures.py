"""Training pictures of the pocket base, as a prepared dataset: `python data/render_pictures.py OUT`."""

import json
from pathlib import Path
from typing import Annotated

import icons
import typer
from PIL import Image

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
    twos: Annotated[float, typer.Option(help="share of pictures with two objects")] = 0.15,
) -> None:
    (out / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        scene, name = icons.scene(seed, number, twos=twos), f"images/{number:06d}.png"
        Image.fromarray(icons.render(scene, px)).save(out / name, compress_level=1)
        rows.append(json.dumps({"file_name": name, "text": scene.caption}))
    (out / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (out / "dataset.toml").write_text(CARD.format(count=count), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
