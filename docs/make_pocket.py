"""Write docs/pocket.md, what the bundled base can draw, from its vocabulary and its card: python docs/make_pocket.py"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).parent / "pocket.md"
VOCABULARY = ROOT / "data" / "vocabularies" / "pocket.toml"
CARD = ROOT / "data" / "pocket" / "README.md"
HEAD = """# What `pocket` can draw

`pocket` is the base that ships with this package: a small Stable Diffusion that trains on a CPU in minutes, without
any download. **It is a test bed, not a picture maker.** Its pictures are 64 x 64 pixels and show one icon, or two, on a
plain ground. It has seen no photos, no people and no scenes: of photographs `plan` and `train` say so, and
whether they were learnt is not judged, as its judge knows flat drawings only (`evaluate.judge` names another one).
Use it to try the whole way from pictures to a verified
file, and to see whether a set of pictures is *learnt*; for pictures that you would show to anybody, train
[a larger base](bases.md).

Other words are not refused: they give a picture of nothing that you know. So take a product whose class word is in the
list below, such as a handbag or a tea cup, and ask for the grounds below.
"""


def page() -> str:
    """The whole page."""
    lists = tomllib.loads(VOCABULARY.read_text(encoding="utf-8"))["lists"]
    parts = [HEAD, f"## Backgrounds\n\n{len(lists['settings'])}: {', '.join(lists['settings'])}.\n"]
    parts += ["Also striped, checkered, or shaded from one of these colours to another.\n"]
    parts += [
        f"## How to ask\n\n{_forms()}\n",
        f"## Objects\n\n{len(lists['objects'])}: {', '.join(lists['objects'])}.\n",
    ]
    parts += [f"## How well it does\n\n{_figures()}\n"]
    parts += ["This page is made from the base's vocabulary and its card by `python docs/make_pocket.py`.\n"]
    return "\n".join(parts)


def _section(name: str) -> str:
    return re.split(r"(?m)^## ", CARD.read_text(encoding="utf-8").split(f"\n## {name}\n")[1])[0].strip()


def _forms() -> str:
    """The forms of captions that it was trained on, as the card lists them."""
    whole = _section("What it knows")
    rows = re.findall(r"(?ms)^- .*?(?=^- |\n\n|\Z)", whole)
    advice = (
        "Generate with guidance 3 and 20 steps. Captions that it reads, with `a`, `an` or, before plurals, `some`:\n\n"
    )
    return advice + "\n".join(" ".join(row.split()) for row in rows).replace(
        " Never in the two styles of `data/styles.py`, whose colours are kept for adapters to learn.", ""
    )


def _figures() -> str:
    table = re.search(r"(?ms)^\| measured.*?(?=\n\n)", _section("Figures") + "\n\n")
    assert table
    return f"Judged by an independent classifier, 20 steps, guidance 3:\n\n{table[0]}\n\nThe last two on two CPU cores."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
