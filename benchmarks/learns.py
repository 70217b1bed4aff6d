"""Did it learn what the user meant, and at what price? Trains on the pocket base, and lets a referee look.

    python benchmarks/learns.py table     four subjects with the shipped settings, over three seeds, beside references
    python benchmarks/learns.py foreign   six subjects as users bring them: no captions, file names of cameras
    python benchmarks/learns.py sweep     one question at a time on the two subjects that recipes are tuned on
    python benchmarks/learns.py write     docs/learns.md and docs/learns-foreign.md; exits 1 when a bar is missed

A trial that was measured is kept under --work and not repeated, its run folder too. Two subjects are the bundled
examples; two more, which no recipe was tuned on, are drawn by `benchmarks/unseen.py`, six by `benchmarks/foreign.py`.
Needs the emoji font.
"""

import functools
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import torch
import typer
from PIL import Image

if TYPE_CHECKING:
    from referee.subject import Question

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "data"), str(ROOT / "benchmarks")]

import foreign as owners  # noqa: E402
import icons  # noqa: E402
from drawn import draw, prompt  # noqa: E402
from measured import OURS, Found, Measures, bars, page  # noqa: E402

import finetune  # noqa: E402
from finetune import families, recipe  # noqa: E402
from finetune import resources as shipped  # noqa: E402
from finetune import tensors as weights  # noqa: E402
from finetune.cli import hush  # noqa: E402
from finetune.data import dataset  # noqa: E402
from finetune.data.example import Dataset  # noqa: E402
from finetune.data.prepare import prepare as prepare_dataset  # noqa: E402
from finetune.errors import FinetuneError  # noqa: E402
from finetune.evaluation import similarity as likeness  # noqa: E402
from finetune.sampling.request import AdapterWeight  # noqa: E402
from finetune.sampling.session import Session  # noqa: E402
from finetune.training import run  # noqa: E402

WORK = Path("build/learns")
SEEDS = (0, 1, 2)
PLAIN_SEED = 7000
LOOKED = 2
"""counts up when `look` measures something else: what was kept before is measured again"""
app = typer.Typer(add_completion=False, help=__doc__)


class Asked(NamedTuple):
    prompt: str
    says: str
    """the object or the colour in it"""


class Subject(NamedTuple):
    kind: Literal["product", "style"]
    data: str
    class_word: str
    held_out: tuple[str, ...]
    """backgrounds of a product, objects of a style"""
    style: str = ""
    """as the referee calls it"""
    owner: str = ""
    """its name in `foreign`: the referee is asked whether a picture shows this very product, or this very style"""

    def pictures(self) -> Dataset:
        return dataset.read_dataset(shipped.data_path(Path(self.data)))

    def asked(self) -> list[Asked]:
        """Never trained on."""
        if self.kind == "product":
            return [
                Asked(prompt(f"sks {self.class_word}", colour), colour) for colour in self.held_out for _ in range(4)
            ]
        return [Asked(f"{icons.article(name)} {name}, sks style", name) for name in self.held_out for _ in range(2)]

    @property
    def times(self) -> int:
        """how often each training caption is painted"""
        return 4 if self.kind == "product" else 1


class Trial(NamedTuple):
    subject: str
    label: str
    sets: tuple[str, ...]
    """KEY=VALUE on top of the shipped recipe"""
    seed: int
    trained: bool = True


REFERENCES = {"base", "shipped", "shuffled captions", "rate 0"}
"""labels of the trials that the bars compare"""


def subjects(work: Path) -> dict[str, Subject]:
    """The two bundled examples, and the two that recipes were not tuned on."""
    import unseen

    style = (
        "car", "banana", "cat face", "strawberry", "pizza", "guitar", "penguin", "donut", "cactus", "butterfly",
        "ice cream", "castle", "camera", "umbrella", "owl", "hammer", "robot", "sneaker", "heart", "duck",
    )  # fmt: skip
    cup = ("purple", "black", "orange", "teal", "blue", "brown")
    return {
        "product": Subject("product", "example:product", "cup", cup),
        "style": Subject("style", "example:style", "", style, "poster"),
        "product-2": Subject("product", str(work / "unseen" / "product"), unseen.CLASS, unseen.HELD_OUT_COLOURS),
        "style-2": Subject("style", str(work / "unseen" / "style"), "", unseen.HELD_OUT_OBJECTS[:20], "blueprint"),
        **{
            name: Subject("product", str(work / "foreign" / name), one.class_word, one.held_out, owner=name)
            for name, one in owners.PRODUCTS.items()
        },
        **{
            name: Subject("style", str(work / "foreign" / name), "", one.held_out, owner=name)
            for name, one in owners.STYLES.items()
        },
    }


OVERTRAINED = ("train.steps=600", "optimizer.learning_rate=3e-3")
SWEPT = {
    "optimizer.learning_rate": "1e-3", "optimizer.schedule": "cosine", "train.steps": "300", "train.batch": "4",
    "adapter.rank": "8", "adapter.alpha": "8", "adapter.targets": "all",
    "adapter.components": '["denoiser", "text_encoder"]', "data.caption_dropout": "0.05", "prior.mode": "off",
}  # fmt: skip
"""what a sweep starts from, whatever recipes say by now"""
QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "learning rate": {r: (f"optimizer.learning_rate={r}",) for r in ("3e-4", "2e-3")},
    "rank": {r: (f"adapter.rank={r}", f"adapter.alpha={r}") for r in ("4", "16")},
    "alpha": {"rank / 2": ("adapter.alpha=4",), "2 x rank": ("adapter.alpha=16",)},
    "steps": {s: (f"train.steps={s}",) for s in ("150", "600")},
    "min-SNR": {g: (f"objective.min_snr={g}",) for g in ("5",)},
    "prior": {"own prediction": ("prior.mode=self",),
              "images": ("prior.mode=images", "prior.path=WORK/class", "prior.prompt=a picture")},
    "text encoder": {"off": ('adapter.components=["denoiser"]',),
                     "at a tenth of the rate": ("optimizer.text_encoder_learning_rate=1e-4",)},
    "targets": {t: (f"adapter.targets={t}",) for t in ("attention", "attention+ff")},
    "caption dropout": {d: (f"data.caption_dropout={d}",) for d in ("0", "0.2")},
    "EMA": {d: (f"train.ema={d}",) for d in ("0.99",)},
}  # fmt: skip


@app.command()
def table(work: Path = WORK, jobs: int = 2) -> None:
    """The shipped settings on four subjects, with what they are measured against."""
    work = prepare(work)
    trials = []
    for name in OURS:
        trials += [Trial(name, "base", (), 0, trained=False), *(Trial(name, "shipped", (), seed) for seed in SEEDS)]
        trials += [Trial(name, "rate 0", ("optimizer.learning_rate=0", "train.steps=20"), 0)]
        trials += [Trial(name, "shuffled captions", (f"data.path={work / 'shuffled' / name}",), 0)]
        trials += [Trial(name, "over-trained", OVERTRAINED, 0)]
    carry_out(trials, work, jobs)


@app.command()
def foreign(work: Path = WORK, jobs: int = 2, only: Annotated[list[str] | None, typer.Option()] = None) -> None:
    """The shipped settings on what users bring, prepared as the README says, with nothing but the words changed."""
    work = prepare(work)
    names = only or [*owners.PRODUCTS, *owners.STYLES]
    trials = [Trial(name, "base", (), 0, trained=False) for name in names]
    trials += [Trial(name, "shipped", (), seed) for seed in SEEDS for name in names]
    products = [name for name in names if name in owners.PRODUCTS]
    trials += [Trial(name, "captioned", (f"data.path={work / 'captioned' / name}",), 0) for name in products]
    carry_out(trials, work, jobs)


@app.command()
def sweep(
    work: Path = WORK, jobs: int = 2, only: Annotated[list[str] | None, typer.Option(help="questions")] = None,
    seeds: int = 1, subject: Annotated[list[str] | None, typer.Option(help="product, style or both")] = None,
) -> None:  # fmt: skip
    """One question at a time, all else as in SWEPT."""
    work = prepare(work)
    asked: dict[str, tuple[str, ...]] = {"sweep": ()}
    for question, answers in QUESTIONS.items():
        asked |= {f"{question}: {label}": sets for label, sets in answers.items() if not only or question in only}
    trials = []
    for label, sets in asked.items():
        changed = dict(one.replace("WORK", str(work)).split("=", 1) for one in sets)
        merged = tuple(f"{key}={value}" for key, value in (SWEPT | changed).items())
        trials += [Trial(s, label, merged, seed) for s in subject or ("product", "style")
                   for seed in range(seeds)]  # fmt: skip
    carry_out(trials, work, jobs)


@app.command()
def write(work: Path = WORK, out: Path = ROOT / "docs") -> None:
    """All that was measured on this base with these recipes, as tables: learns.md, and learns-foreign.md of what users
    bring; exits 1 when a bar is missed."""
    found: Found = {}
    for file in sorted((of_base(work) / "trials").glob("*.json")):
        kept = json.loads(file.read_text())
        if (kept.get("looked"), kept["recipe"]) != (LOOKED, recipe_of(kept["label"], kept["subject"])):
            continue  # of a recipe that has changed since, or measured otherwise
        found.setdefault(kept["subject"], {}).setdefault(kept["label"], []).append(Measures(**kept["measures"]))
    due = {subject: REFERENCES if subject in OURS else {"base", "shipped"} for subject in found}
    whole = {subject: runs for subject, runs in found.items() if due[subject] <= runs.keys()}
    rows = [bar for subject, runs in whole.items() for bar in bars(subject, runs)]
    for name, ours in (("learns", True), ("learns-foreign", False)):
        some = {subject: runs for subject, runs in found.items() if (subject in OURS) == ours}
        if some:
            shown = [bar for bar in rows if (bar.subject in OURS) == ours]
            (out / f"{name}.md").write_text(page(some, shown), encoding="utf-8")
    missed = [f"{bar.subject}: {bar.what}" for bar in rows if not bar.held]
    missed += [f"{subject}: run the table first" for subject in found if subject not in whole]
    if missed:
        sys.exit("missed: " + "; ".join(missed))


def of_base(work: Path) -> Path:
    """Another base, another folder: nothing that was measured on one stands for the other."""
    return work / weights.file_sha256(shipped.POCKET / "unet" / "diffusion_pytorch_model.safetensors")[:8]


def prepare(work: Path) -> Path:
    """The folder of this base, with the unseen subjects, shuffled copies of all four, and what the base paints: class
    images, and the pictures that no adapter should change."""
    import unseen

    work = of_base(work)
    made(work / "unseen" / "product", unseen.write_product)
    made(work / "unseen" / "style", unseen.write_style)
    for name, subject in subjects(work).items():
        if subject.owner:
            made(work / "foreign" / name, functools.partial(bring, subject))
            if subject.kind == "product":
                made(work / "captioned" / name, functools.partial(captioned, work / "foreign" / name))
        else:
            made(work / "shuffled" / name, functools.partial(shuffle, subject.pictures()))
    made(work / "class", functools.partial(paint_into, class_captions(), 5000))
    made(work / "plain", functools.partial(paint_into, [one.prompt for one in without_trigger()], PLAIN_SEED))
    return work


def made(folder: Path, how: Callable[[Path], object]) -> None:
    """Made once, whole or not at all."""
    if not folder.exists():
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        how(part)
        part.rename(folder)


def bring(subject: Subject, out: Path) -> None:
    """The owner's folder, prepared with the trigger and the class word, or the kind, and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        owners.write(subject.owner, Path(folder) / "pictures")
        words = {"class_word": subject.class_word} if subject.kind == "product" else {"kind": "style"}
        prepare_dataset(Path(folder) / "pictures", out, trigger="sks", **words)  # type: ignore[arg-type]


def captioned(prepared: Path, out: Path) -> None:
    """A copy with captions by the pocket eyes, as `finetune caption DATASET --vocabulary pocket` makes them."""
    shutil.copytree(prepared, out)
    finetune.caption(out, vocabulary="pocket")


def shuffle(found: Dataset, out: Path) -> None:
    """The same pictures, each with the caption of the next."""
    captions = [e.caption for e in found.examples]
    with tempfile.TemporaryDirectory() as folder:
        for example, caption in zip(found.examples, captions[1:] + captions[:1], strict=True):
            target = Path(folder) / Path(example.name).name
            target.write_bytes(example.path.read_bytes())
            target.with_suffix(".txt").write_text(caption)
        prepare_dataset(Path(folder), out, trigger=found.trigger, class_word=found.class_word, kind=found.kind)


def paint_into(captions: Sequence[str], seed: int, out: Path) -> None:
    """What the base makes of each caption, beside the caption."""
    out.mkdir(parents=True)
    for i, picture in enumerate(draw(Session(families.load("pocket")), captions, range(seed, seed + len(captions)))):
        picture.save(out / f"{i:02d}.png")
        (out / f"{i:02d}.txt").write_text(captions[i])


def class_captions() -> list[str]:
    names = [*list(icons.OBJECTS)[::5][:48], *["tea cup"] * 16]
    return [prompt(name, list(icons.COLOURS)[i % 12]) for i, name in enumerate(names)]


def carry_out(trials: Sequence[Trial], work: Path, jobs: int) -> None:
    """Those not measured yet, a few at a time, each on one core."""
    due = [t for t in dict.fromkeys(trials) if not record(work, t).exists()]
    say(f"{len(trials) - len(due)} of {len(trials)} trials are known")
    with ProcessPoolExecutor(jobs, get_context("spawn"), one_core) as pool:
        running = {pool.submit(measure, trial, work): trial for trial in due}
        for done in as_completed(running):
            trial, measures = running[done], done.result()
            weights.write_bytes(
                json.dumps(
                    {
                        **trial._asdict(),
                        "looked": LOOKED,
                        "recipe": recipe_of(trial.label, trial.subject),
                        "measures": measures._asdict(),
                    }
                ).encode(),
                record(work, trial),
            )
            say(f"{trial.subject} | {trial.label} | seed {trial.seed} | {measures}")


def one_core() -> None:
    """For a worker: no more than a core, and no longer than the process that started it."""
    torch.set_num_threads(1)

    def follow() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def record(work: Path, trial: Trial) -> Path:
    """Where a trial's measures are kept: the name holds all that they depend on beside the base."""
    folder = work / "trials"
    folder.mkdir(parents=True, exist_ok=True)
    told = [LOOKED, recipe_of(trial.label, trial.subject), trial]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    return folder / f"{trial.subject}-{key}.json"


def recipe_of(label: str, subject: str) -> str:
    """SHA-256 of what the shipped recipe says of training; empty in a sweep, which says all by itself."""
    if label == "sweep" or ":" in label:
        return ""
    kind = "product" if subject in owners.PRODUCTS else "style" if subject in owners.STYLES else subject.split("-")[0]
    beside = {"name": True, "data": {"path"}, "sample": True, "evaluate": True, "export": True}
    said = recipe.load(Path(f"pocket-{kind}")).recipe.model_dump(mode="json", exclude_unset=True, exclude=beside)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def measure(trial: Trial, work: Path) -> Measures:
    hush()
    subject = subjects(work)[trial.subject]
    if not trial.trained:
        return look(subject, work, None)
    sets = [f"data.path={subject.data}", "sample.every=0", "sample.steps=1", 'sample.prompts=["a star"]',
            f"train.seed={trial.seed}", "train.checkpoint_every=100000", "evaluate.count=0"]  # fmt: skip
    written = {one.partition("=")[0] for one in trial.sets}
    sets = [one for one in sets if one.partition("=")[0] not in written]
    folder = work / "runs" / record(work, trial).stem
    shutil.rmtree(folder, ignore_errors=True)
    try:
        loaded = recipe.load(Path(f"pocket-{subject.kind}"), [*sets, *trial.sets])
        *_, made = run.run(loaded, folder)
    except FinetuneError as e:
        return Measures(refused=e.problem)
    return look(subject, work, made.path)


def look(subject: Subject, work: Path, adapter: Path | None) -> Measures:
    """Paint with and without the trigger, with and without the adapter, and ask the judges."""
    from referee import classifier

    referee, eyes, session = (
        classifier.load(),
        likeness.FeatureExtractor.load(shipped.EYES),
        Session(families.load("pocket")),
    )
    session.load_adapters([AdapterWeight(adapter)] if adapter else [])

    def paint(asked: Sequence[Asked], seed: int) -> list[Image.Image]:
        return draw(session, [one.prompt for one in asked], range(seed, seed + len(asked)))

    def right(asked: Sequence[Asked], pictures: Sequence[Image.Image]) -> float:
        return statistics.fmean(
            one.says in (v.object, v.background) for one, v in zip(asked, referee.judge(pictures), strict=True)
        )

    asked, plain, examples = subject.asked(), without_trigger(), subject.pictures().examples
    before = [Image.open(file) for file in sorted((work / "plain").glob("*.png"))]
    shown, after = paint(asked, 6000), paint(plain, PLAIN_SEED) if adapter else before
    seen, real = eyes.of_pictures(shown), eyes.of_pictures([Image.open(e.path) for e in examples])
    again = eyes.of_pictures(paint([Asked(e.caption, "") for e in examples for _ in range(subject.times)], 10000))
    own = torch.arange(len(examples)).repeat_interleave(subject.times)
    beside = after if adapter else before[1:] + before[:1]
    if subject.owner:
        fidelity = statistics.fmean(question(subject.owner).seen(shown))
    elif subject.kind == "product":
        fidelity = likeness.cross(seen, real) / likeness.pairwise(real)
    else:
        fidelity = statistics.fmean(v.style == subject.style for v in referee.judge(shown))
    return Measures(
        fidelity, right(asked, shown), float(((again @ real.T).argmax(1) == own).float().mean()),
        1 - likeness.clip_t(eyes.of_pictures(before), eyes.of_pictures(beside)), right(plain, after),
        likeness.diversity(eyes.of_pictures(paint(asked[:1] * 6, 8000))),
    )  # fmt: skip


def question(owner: str) -> "Question":
    """Is it this product, or this style? Learnt from renders, the same each time."""
    from referee.subject import learn

    return learn(owners.shows(owner, "learn", 300), owners.shows_not(owner, "learn", 500))


def without_trigger() -> list[Asked]:
    """48 pictures that no training here should change."""
    names, colours = list(icons.OBJECTS), list(icons.COLOURS)
    some = [names[(i * 37) % len(names)] for i in range(48)]
    return [Asked(prompt(name, colours[i % 12]), name) for i, name in enumerate(some)]


def say(text: Any) -> None:
    typer.echo(text)


if __name__ == "__main__":
    app()
