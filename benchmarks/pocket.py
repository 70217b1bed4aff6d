"""What the pocket base can do, by an independent referee: the table and the sheet of its card.

    python benchmarks/pocket.py [--base pocket] [--sheet data/pocket/sheet.png] [--quick]

Needs the emoji font (`data/icons.py`), to draw what the base has never seen and what it was trained on.
Exits 1 when a bar is missed.
"""

import argparse
import itertools
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "data")]

import icons  # noqa: E402
from build_pocket import LEGS  # noqa: E402
from drawn import GUIDANCE, STEPS, draw, prompt  # noqa: E402
from referee import classifier  # noqa: E402
from render_pictures import picture  # noqa: E402

from finetune import families  # noqa: E402
from finetune import recipe as recipes  # noqa: E402
from finetune.cli import hush  # noqa: E402
from finetune.families.base import Family  # noqa: E402
from finetune.planning import plan as planning  # noqa: E402
from finetune.sampling.request import SampleRequest  # noqa: E402
from finetune.sampling.session import Session  # noqa: E402
from finetune.training import loop as trainer  # noqa: E402
from finetune.training.begin import begin  # noqa: E402

PAIRS, TWOS, COPIES = 300, 100, 100


class Row(NamedTuple):
    what: str
    found: float
    bar: float
    unit: str = "%"
    at_most: bool = False

    @property
    def held(self) -> bool:
        return self.found <= self.bar if self.at_most else self.found >= self.bar

    def line(self) -> str:
        number, bar = (f"{x:.1%}" if self.unit == "%" else f"{x:.2f} {self.unit}" for x in (self.found, self.bar))
        return f"| {self.what} | {number} | {'at most' if self.at_most else 'at least'} {bar} |"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--base", default="pocket")
    arguments.add_argument("--sheet", type=Path, help="where the 8 x 8 sheet is written")
    arguments.add_argument("--quick", action="store_true", help="a fifth of the pictures, and no timing")
    said = arguments.parse_args()
    hush()
    family, referee = families.load(said.base), classifier.load()
    session = Session(family)
    share = 5 if said.quick else 1
    rows = [*one_object(session, referee, PAIRS // share), *two_objects(session, referee, TWOS // share)]
    rows += [autoencoder(family), *copies(session, COPIES // share)]
    rows += [] if said.quick else [seconds_a_picture(session), seconds_a_step(said.base)]
    if said.sheet:
        said.sheet.parent.mkdir(parents=True, exist_ok=True)
        sheet(session).quantize(256).save(said.sheet, optimize=True)
    say("| measured | found | bar |\n|---|---|---|\n" + "\n".join(row.line() for row in rows))
    missed = [row.what for row in rows if not row.held]
    if missed:
        sys.exit("missed: " + "; ".join(missed))


def one_object(session: Session, referee: classifier.Classifier, count: int) -> Iterator[Row]:
    """Objects on backgrounds that training never put them on."""
    pairs = sorted(icons.held_out_pairs())
    random.Random("pairs").shuffle(pairs)
    pairs = pairs[:count]
    prompts = [prompt(name, colour) for name, colour in pairs]
    verdicts = referee.judge(draw(session, prompts, range(len(prompts))))
    named = [v.object == name for v, (name, _) in zip(verdicts, pairs, strict=True)]
    behind = [v.background == colour and v.ground == "plain" for v, (_, colour) in zip(verdicts, pairs, strict=True)]
    yield Row(f"object right, {count} held-out pairs", mean(named), 0.85)
    yield Row("background right", mean(behind), 0.95)
    yield Row("both right", mean([a and b for a, b in zip(named, behind, strict=True)]), 0.80)


def two_objects(session: Session, referee: classifier.Classifier, count: int) -> Iterator[Row]:
    chance, asked = random.Random("two"), []
    for _ in range(count):
        one, other = chance.sample(list(icons.OBJECTS), 2)
        asked.append((one, other, chance.choice(list(icons.COLOURS))))
    prompts = [
        f"{icons.article(one)} {one} and {icons.article(other)} {other} on {icons.article(c)} {c} background"
        for one, other, c in asked
    ]
    verdicts = referee.judge(draw(session, prompts, range(1000, 1000 + count)))
    both = [{one, other} == set(v.objects[:2]) for v, (one, other, _) in zip(verdicts, asked, strict=True)]
    yield Row(f"two objects, both present, {count} prompts", mean(both), 0.50)


def autoencoder(family: Family) -> Row:
    """Mean over new renders of 10 log10(1 / mean squared error), pixels from 0 to 1."""
    side = family.facts.resolution
    shown = tensor([icons.render(icons.scene("benchmark", i), side) for i in range(256)])
    found = []
    for part in shown.split(64):
        moments = family.encode_images(part)
        back = family.decode_latents(family.latents(moments, torch.zeros_like(moments.mean))).clamp(-1, 1)
        found += (-10 * ((back - part) / 2).square().mean((1, 2, 3)).log10()).tolist()
    return Row("autoencoder, PSNR on 256 new renders", mean(found), 26, "dB")


def copies(session: Session, count: int) -> Iterator[Row]:
    """Are pictures copies of what was trained on? Each is compared with the training renders of its object on its
    background, and with as many new ones: a model that learnt the object is no nearer to the former. And the places and
    sizes of one prompt's pictures must vary."""
    chance = random.Random("copies")
    seen: dict[tuple[str, str], list[icons.Scene]] = {}
    for leg in LEGS:
        for scene in (picture(leg.seed, number, leg.twos, leg.flat) for number in range(leg.pictures)):
            if isinstance(scene, icons.Scene) and len(scene.objects) == 1 and scene.ground.kind == "plain":
                seen.setdefault((scene.objects[0].name, scene.ground.colours[0]), []).append(scene)
    pairs = chance.sample(sorted(pair for pair, scenes in seen.items() if len(scenes) >= 8), count)
    pictures = draw(session, [prompt(*pair) for pair in pairs], range(2000, 2000 + count))
    side, nearer = session.family.facts.resolution, []
    for pair, made in zip(pairs, pictures, strict=True):
        own = seen[pair]
        fresh = [fresh_like(scene, f"{pair}/{i}") for i, scene in enumerate(own)]
        pixels = np.asarray(made, dtype=np.float32)
        old, new = (min(float(np.square(icons.render(s, side) - pixels).mean()) for s in some) for some in (own, fresh))
        nearer.append(old < new)
    yield Row("nearest render is a trained one (a learner: 50 %)", mean(nearer), 0.65, at_most=True)
    places = []
    for pair in pairs[: max(4, count // 5)]:
        boxes = [box(p) for p in draw(session, [prompt(*pair)] * 8, range(3000, 3008))]
        places.append(statistics.mean(statistics.stdev(values) for values in zip(*boxes, strict=True)))
    yield Row("spread of place and size over 8 seeds, of the side", mean(places), 0.03, "")


def fresh_like(scene: icons.Scene, seed: str) -> icons.Scene:
    """The same object on the same ground, in a size of the same word and at the place that another draw gives it."""
    placed = scene.objects[0]
    low, high = next(sides for sides in icons.SIDES.values() if sides[0] <= placed.side <= sides[1])
    other = next(
        s
        for n in itertools.count()
        if len((s := icons.scene(seed, n)).objects) == 1 and low <= s.objects[0].side <= high
    )
    return scene._replace(
        objects=(other.objects[0]._replace(name=placed.name),), ground=scene.ground._replace(shift=other.ground.shift)
    )


def box(picture: Image.Image) -> tuple[float, float, float]:
    """(x, y, longest side) of what stands out from the border's colour, in shares of the side."""
    pixels = np.asarray(picture, dtype=np.float32)
    border = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    rows, columns = np.nonzero(np.abs(pixels - border).sum(2) > 60)
    if not len(rows):
        return 0.5, 0.5, 0.0
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    return tuple(
        float(n) / len(pixels) for n in ((left + right) / 2, (top + bottom) / 2, max(bottom - top, right - left))
    )  # type: ignore[return-value]


def seconds_a_picture(session: Session) -> Row:
    side, taken = session.family.facts.resolution, []
    for seed in range(6):
        began = time.perf_counter()
        request = SampleRequest("a red apple on a blue background", seed, "", STEPS, GUIDANCE, side, side)
        session.generate(request)
        taken.append(time.perf_counter() - began)
    return Row(f"one picture of {STEPS} steps, median of 5", statistics.median(taken[1:]), 2.0, "s", at_most=True)


def seconds_a_step(base: str) -> Row:
    """A step of the shipped product recipe, batch 4, prior and text encoder included."""
    plan = planning.resolve_plan(recipes.load(Path("pocket-product"), [f"base={base}", "train.steps=12"]))
    run = begin(plan)
    steps = trainer.train(run.state, run.data.batches, plan.recipe, run.device)
    taken = [step.seconds for step in steps]
    return Row("one LoRA step, batch 4, median", statistics.median(taken[2:]), 0.5, "s", at_most=True)


def sheet(session: Session) -> Image.Image:
    """8 x 8 pictures of held-out pairs, in rows by kind of prompt; nothing chosen by hand."""
    chance, side = random.Random("sheet"), 2 * session.family.facts.resolution
    pairs = chance.sample(sorted(icons.held_out_pairs()), 48)
    prompts = [prompt(*pair) for pair in pairs]
    prompts += [icons.scene("sheet", n).caption for n in range(400) if len(icons.scene("sheet", n).objects) == 2][:8]
    prompts += [icons.scene("sheet", n).caption for n in range(400) if icons.scene("sheet", n).ground.kind != "plain"][
        :8
    ]
    page = Image.new("RGB", (8 * side, 8 * side))
    for i, made in enumerate(draw(session, prompts, range(4000, 4064))):
        page.paste(made.resize((side, side), Image.Resampling.LANCZOS), (i % 8 * side, i // 8 * side))
    return page


def tensor(pictures: Sequence[icons.Pixels]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def mean(found: Sequence[float]) -> float:
    return statistics.fmean(found)


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
