"""Draws the bundled example data: a product (`cup.py`) and a brand style (`brand.py`), as prepared datasets.

Run `python data/draw_examples.py`; the same pictures come out every time. Nothing is read: every shape is written here
and in the modules beside this one.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from brand import GROUND, ICONS, styled
from cup import BACKGROUNDS, VIEWS, cup
from drawing import picture
from PIL import Image

TRIGGER = "sks"


class Row(NamedTuple):
    text: str
    image: Image.Image


def product() -> list[Row]:
    rows = []
    for view in VIEWS:
        image = picture(BACKGROUNDS[view.background], cup(view))
        rows.append(Row(f"a {TRIGGER} cup on a {view.background} background", image))
    return rows


def style() -> list[Row]:
    return [Row(f"a {name}, {TRIGGER} style", picture(GROUND, styled(draw()))) for name, draw in ICONS.items()]


def write(folder: Path, rows: Sequence[Row], card: dict[str, str]) -> None:
    """A prepared dataset: images/, metadata.jsonl, dataset.toml."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    table = ""
    for number, row in enumerate(rows, start=1):
        name = f"images/{number:02}.png"
        row.image.save(folder / name, optimize=True)
        table += json.dumps({"file_name": name, "text": row.text}) + "\n"
    said = card | {
        "license": "CC0-1.0",
        "source": "drawn by data/draw_examples.py",
        "background": "white",
        "captions": "metadata.jsonl",
    }
    lines = ["format = 1", f'trigger = "{TRIGGER}"', *(f'{key} = "{value}"' for key, value in said.items())]
    lines += [f"images = {len(rows)}", f"seen = {len(rows)}"]
    (folder / "metadata.jsonl").write_text(table, encoding="utf-8", newline="\n")
    (folder / "dataset.toml").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def draw_all(out: Path) -> None:
    write(out / "product", product(), {"class_word": "cup", "kind": "product"})
    write(out / "style", style(), {"kind": "style"})


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the bundled example datasets.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "examples")
    draw_all(parser.parse_args().out)


if __name__ == "__main__":
    main()
