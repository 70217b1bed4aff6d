"""Do masks keep the one background out of what is learnt? A product photographed six times on one single background.

    python benchmarks/masks.py                    trains on the pocket base, three seeds; exits 1 when a bar is missed
    python benchmarks/masks.py --ground checked   on a checked cloth instead of a plain ground
    python benchmarks/masks.py --only masked      some of the ways only: no masks, masked, a tenth, own prediction
    python benchmarks/masks.py --known            what was measured already; trains nothing

The pictures have no captions, as users bring them, and each trial differs in its masks alone, which are drawn with the
pictures. The referee says how often the product is seen, and how often the background that was asked for, of five that
were never trained on. A run takes some minutes of one core: what was measured is kept in benchmarks/kept/masks, by
base, recipe and seed, and not repeated until its file is removed. Needs the emoji font.
"""

import functools
import hashlib
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import typer
from PIL import Image, ImageChops

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "data")]

import foreign as owners  # noqa: E402
import icons  # noqa: E402
import learns  # noqa: E402
from cup import View  # noqa: E402
from drawn import draw as draw_prompts  # noqa: E402
from drawn import prompt  # noqa: E402
from referee import classifier  # noqa: E402

from finetune import families, recipe  # noqa: E402
from finetune import tensors as weights  # noqa: E402
from finetune.cli import hush  # noqa: E402
from finetune.data.prepare import prepare  # noqa: E402
from finetune.events import Finished  # noqa: E402
from finetune.sampling.request import AdapterWeight  # noqa: E402
from finetune.sampling.session import Session  # noqa: E402
from finetune.training import run  # noqa: E402

KEPT = Path(__file__).parent / "kept" / "masks"
Ground = Literal["plain", "checked"]
PLAIN = {"handbag": "gray", "lamp": "brown"}
"""a product, and the one background of its pictures, where that is plain"""
CLOTH, SQUARE_PX = ("brown", "white"), 24
"""the two colours of a checked cloth, and the side of a square, of drawings of SIZE_PX"""
EDGE_PX, CHECKED = 4, 20.0
"""how wide the edge of a generated picture is, and from which standard deviation of its grey levels it is checked"""
SEEDS = (0, 1, 2)
WAYS: dict[str, tuple[str, ...]] = {
    "no masks": ("data.mask_outside=1.0",),
    "masked": ("data.mask_outside=0.0",),
    "a tenth": ("data.mask_outside=0.1",),
    "own prediction": ("data.mask_outside=own_prediction",),
}
UNASKED = ("a photo of sks {}", "a sks {}", "sks {}")
GAIN, LOSS = 0.3, 0.05
"""how much more often the background asked for must be painted with masks, and how much less the product seen, at
most"""


class Looked(NamedTuple):
    """Shares of pictures."""

    product: float
    """in which the product is seen, of those with a background that was never trained on"""
    asked: float
    """the same that have the background asked for"""
    unasked: float
    """of those whose prompt names no background: that have the one of the training pictures"""


class Trial(NamedTuple):
    subject: str
    ground: Ground
    way: str
    seed: int


Found = dict[Trial, Looked]


def main(
    work: Path = learns.WORK,
    only: Annotated[list[str] | None, typer.Option(help="ways")] = None,
    subject: Annotated[list[str] | None, typer.Option(help="products")] = None,
    ground: Annotated[Ground, typer.Option(help="what the product stands on")] = "plain",
    seed: Annotated[list[int] | None, typer.Option(help="some of the seeds only")] = None,
    known: Annotated[bool, typer.Option("--known", help="only what was measured already")] = False,
) -> None:
    """Train and look where it is due, then compare."""
    hush()
    learns.one_core()
    work = learns.of_base(work)
    names = subject or ["handbag"]
    trials = [Trial(name, ground, way, one) for one in seed or SEEDS for name in names for way in only or WAYS]
    found: Found = {}
    for trial in trials:
        file = record(work, trial)
        if not file.exists() and not known:
            weights.write_bytes(
                (json.dumps({**trial._asdict(), **measure(trial, work)._asdict()}) + "\n").encode(), file
            )
        if file.exists():
            told = json.loads(file.read_text())
            found[trial] = Looked(**{key: told[key] for key in Looked._fields})
            learns.say(line(trial, found[trial]))
    missed = [sentence for name in names for sentence, held in bars(name, found) if not held]
    for name in names:
        for sentence, held in bars(name, found):
            learns.say(f"{'held' if held else 'missed'}: {sentence}")
    if missed:
        sys.exit("missed: " + "; ".join(missed))


def bars(name: str, found: Found) -> list[tuple[str, bool]]:
    """Sentences, and whether each is true; none where a way was not measured yet."""
    means = {}
    for way in ("no masks", "masked"):
        some = [one for trial, one in found.items() if (trial.subject, trial.way) == (name, way)]
        if not some:
            return []
        means[way] = Looked(*(statistics.fmean(column) for column in zip(*some, strict=True)))
    plain, masked = means["no masks"], means["masked"]
    return [
        (f"{name}: the background asked for in {masked.asked:.0%} of pictures with masks, {plain.asked:.0%} without; "
         f"bar {GAIN:.0%} more", masked.asked - plain.asked >= GAIN),
        (f"{name}: the training background, unasked, in {masked.unasked:.0%} of pictures with masks, "
         f"{plain.unasked:.0%} without; bar {GAIN:.0%} less", plain.unasked - masked.unasked >= GAIN),
        (f"{name}: the product seen in {masked.product:.0%} with masks, {plain.product:.0%} without; bar {LOSS:.0%} "
         "less at most", plain.product - masked.product <= LOSS),
    ]  # fmt: skip


def line(trial: Trial, found: Looked) -> str:
    return (
        f"{trial.subject:<8} {trial.ground:<8} {trial.way:<15} seed {trial.seed}  product seen {found.product:.2f}, "
        f"background as asked {found.asked:.2f}, the training background unasked {found.unasked:.2f}"
    )


def measure(trial: Trial, work: Path) -> Looked:
    data = work / "masks" / f"{trial.subject}-{trial.ground}"
    learns.made(data, functools.partial(bring, trial.subject, trial.ground))
    folder = work / "runs" / record(work, trial).stem
    shutil.rmtree(folder, ignore_errors=True)
    loaded = recipe.load(Path("pocket-product"), [
        f"data.path={data}", "sample.every=0", "sample.steps=1", 'sample.prompts=["a star"]',
        f"train.seed={trial.seed}", "train.checkpoint_every=100000", "evaluate.count=0", *WAYS[trial.way],
    ])  # fmt: skip
    *_, made = run.run(loaded, folder)
    assert isinstance(made, Finished)
    return look(trial.subject, trial.ground, made.path)


def look(name: str, ground: Ground, adapter: Path) -> Looked:
    """Paint the product on backgrounds that were never trained on, and where none is asked for; the referee judges."""
    product = owners.PRODUCTS[name]
    session = Session(families.load("pocket"))
    session.load_adapters([AdapterWeight(adapter)])
    asked = [colour for colour in product.held_out for _ in range(4)]
    open_prompts = [one.format(product.class_word) for one in UNASKED for _ in range(4)]
    prompts = [*(prompt(f"sks {product.class_word}", colour) for colour in asked), *open_prompts]
    pictures = draw_prompts(session, prompts, range(6000, 6000 + len(prompts)))
    judged = classifier.load().judge(pictures)
    checked = [is_checked(one) for one in pictures]
    right = [v.background == colour and not c for v, colour, c in zip(judged, asked, checked, strict=False)]
    own = [verdict.background == PLAIN[name] for verdict in judged[len(asked) :]]
    if ground == "checked":
        own = checked[len(asked) :]
    seen = learns.question(name).seen(pictures)
    return Looked(statistics.fmean(seen[: len(asked)]), statistics.fmean(right), statistics.fmean(own))


def is_checked(picture: Image.Image) -> bool:
    grey = np.asarray(picture.convert("L"), np.float32)
    edge = [grey[:EDGE_PX], grey[-EDGE_PX:], grey[:, :EDGE_PX].T, grey[:, -EDGE_PX:].T]
    return float(np.std(np.concatenate(edge))) >= CHECKED


def bring(name: str, ground: Ground, out: Path) -> None:
    """Six pictures of the product on its one background, with masks beside them, prepared with nothing but words."""
    with tempfile.TemporaryDirectory() as folder:
        draw(name, ground, Path(folder))
        prepare(Path(folder), out, trigger="sks", class_word=owners.PRODUCTS[name].class_word)


def draw(name: str, ground: Ground, folder: Path) -> None:
    product = owners.PRODUCTS[name]
    for number, view in enumerate(product.views[:6]):
        picture = owners.photo(product, view._replace(background=PLAIN[name]))
        mask = mask_of(product, view)
        if ground == "checked":
            picture = Image.composite(picture, cloth(picture.size, 7 * number), mask)
        file = folder / product.file_name.format(product.first + 3 * number)
        picture.save(file, quality=93)
        mask.save(file.with_name(f"{file.stem}-mask.png"))


def cloth(size: tuple[int, int], moved_px: int) -> Image.Image:
    """A checked cloth, which does not lie the same way twice."""
    y, x = np.mgrid[: size[1], : size[0]] + moved_px
    colours = np.array([icons.COLOURS[name] for name in CLOTH], np.uint8)
    return Image.fromarray(colours[(x // SQUARE_PX + y // SQUARE_PX) % 2])


def mask_of(product: owners.Product, view: View) -> Image.Image:
    """Where the product is: as light as what shines through is dark."""
    light, dark = (owners.photo(product, view._replace(background=ground)) for ground in ("white", "black"))
    through = np.asarray(ImageChops.difference(light, dark), np.float32).max(2)
    whole = float(through.max())
    return Image.fromarray(np.asarray(255 * (1 - through / whole), np.uint8))


def record(work: Path, trial: Trial) -> Path:
    """Where a trial's measures are kept, by all that they depend on beside the base, after which `work` is called."""
    told = [
        learns.LOOKED,
        learns.recipe_of("shipped", trial.subject),
        WAYS[trial.way],
        PLAIN[trial.subject],
        CLOTH,
        trial,
    ]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]
    folder = KEPT / work.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{trial.subject}-{trial.ground}-{trial.way.replace(' ', '-')}-{trial.seed}-{key}.json"


if __name__ == "__main__":
    typer.run(main)
