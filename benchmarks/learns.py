"""Did it learn what the user meant, and at what price? Trains on the pocket base, and lets a referee look.

    python benchmarks/learns.py table   four subjects with the shipped settings, over three seeds, beside references
    python benchmarks/learns.py sweep   one question at a time on the two subjects that recipes are tuned on
    python benchmarks/learns.py write   docs/learns.md from all that was measured

A trial that was measured is kept under --work and not repeated. Two subjects are the bundled examples; two more, which
no recipe was tuned on, are drawn by `benchmarks/unseen.py`. Needs the emoji font.

fidelity  product: mean similarity of its pictures to the real ones, over the real ones' own mutual similarity;
          style: share of pictures that the referee sees in that style. Objects and backgrounds are held out
prompt    product: background as asked for; style: object as asked for. By the referee
drift     of pictures without the trigger: mean of 1 - similarity to what the base paints from the same noise
kept      share of those pictures whose object the referee still sees
diversity mean of 1 - similarity between pictures of one prompt
"""

import hashlib
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import typer
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "data"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import icons  # noqa: E402
from drawn import draw, prompt  # noqa: E402

from finetune import dataset, families, likeness, recipe, run, shipped, weights  # noqa: E402
from finetune.cli import hush  # noqa: E402
from finetune.errors import FinetuneError  # noqa: E402

WORK = Path("build/learns")
SEEDS = (0, 1, 2)
app = typer.Typer(add_completion=False, help=__doc__)


class Subject(NamedTuple):
    kind: Literal["product", "style"]
    data: str
    class_word: str
    held_out: tuple[str, ...]
    """backgrounds of a product, objects of a style"""
    style: str = ""
    """as the referee calls it"""

    def asked(self) -> list[str]:
        if self.kind == "product":
            return [prompt(f"sks {self.class_word}", colour) for colour in self.held_out]
        return [f"{icons.article(name)} {name}, sks style" for name in self.held_out]


class Trial(NamedTuple):
    subject: str
    label: str
    sets: tuple[str, ...]
    seed: int
    trained: bool = True


class Measures(NamedTuple):
    fidelity: float
    prompt: float
    drift: float
    kept: float
    diversity: float
    note: str = ""


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
    }


OVERTRAINED = ("train.steps=1200", "optimizer.learning_rate=3e-3")
QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "learning rate": {r: (f"optimizer.learning_rate={r}",) for r in ("3e-4", "2e-3")},
    "rank": {r: (f"adapter.rank={r}",) for r in ("2", "4", "16", "32")},
    "alpha": {"rank / 2": ("adapter.alpha=4",), "2 x rank": ("adapter.alpha=16",)},
    "steps": {s: (f"train.steps={s}",) for s in ("150", "600")},
    "min-SNR": {g: (f"objective.min_snr={g}",) for g in ("1", "5")},
    "prior": {"off": ("prior.mode=off",), "own prediction": ("prior.mode=self",),
              "images": ("prior.mode=images", "prior.path=WORK/class", "prior.prompt=a picture")},
    "text encoder": {"off": ('adapter.components=["denoiser"]',),
                     "at a tenth of the rate": ("optimizer.text_encoder_learning_rate=1e-4",)},
    "targets": {t: (f"adapter.targets={t}",) for t in ("attention", "attention+ff")},
    "caption dropout": {d: (f"data.caption_dropout={d}",) for d in ("0", "0.2")},
    "EMA": {d: (f"train.ema={d}",) for d in ("0.98", "0.99")},
}  # fmt: skip


@app.command()
def table(work: Path = WORK, jobs: int = 2) -> None:
    """The shipped settings on four subjects, with what they are measured against."""
    prepare(work)
    trials = []
    for name in subjects(work):
        trials += [Trial(name, "base", (), 0, trained=False)]
        trials += [Trial(name, "shipped", (), seed) for seed in SEEDS]
        trials += [
            Trial(name, "over-trained", OVERTRAINED, 0),
            Trial(name, "rate 0", ("optimizer.learning_rate=0",), 0),
        ]
        trials += [Trial(name, "shuffled captions", (f"data.path={work / 'shuffled' / name}",), 0)]
    carry_out(trials, work, jobs)


@app.command()
def sweep(
    work: Path = WORK, jobs: int = 2, only: Annotated[list[str] | None, typer.Option(help="questions")] = None,
    seeds: int = 2,
) -> None:  # fmt: skip
    """One question at a time, all else as shipped."""
    prepare(work)
    trials = [Trial(s, "shipped", (), seed) for s in ("product", "style") for seed in range(seeds)]
    for question, answers in QUESTIONS.items():
        for label, sets in answers.items() if not only or question in only else ():
            sets = tuple(one.replace("WORK", str(work)) for one in sets)
            trials += [Trial(s, f"{question}: {label}", sets, n) for s in ("product", "style") for n in range(seeds)]
    carry_out(trials, work, jobs)


@app.command()
def write(work: Path = WORK, out: Path = ROOT / "docs" / "learns.md") -> None:
    """All measured trials as tables."""
    found: dict[str, dict[str, list[Measures]]] = {}
    for file in sorted((work / "trials").glob("*.json")):
        kept = json.loads(file.read_text())
        found.setdefault(kept["subject"], {}).setdefault(kept["label"], []).append(Measures(**kept["measures"]))
    out.write_text(page(found), encoding="utf-8")


def page(found: dict[str, dict[str, list[Measures]]]) -> str:
    lines = ["# What training on the pocket base learns", "", *(__doc__ or "").split("\n\n", 3)[3:], ""]
    for subject, rows in found.items():
        lines += [f"## {subject}", "", "| trial | runs | " + " | ".join(Measures._fields[:-1]) + " |",
                  "|---|---|" + "---|" * (len(Measures._fields) - 1)]  # fmt: skip
        for label, runs in rows.items():
            told = [spread([getattr(m, field) for m in runs if not m.note]) for field in Measures._fields[:-1]]
            refused = f" ({runs[0].note})" if runs[0].note else ""
            lines.append(f"| {label}{refused} | {len(runs)} | {' | '.join(told)} |")
        lines.append("")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """mean ± half of the range"""
    if not values:
        return "-"
    half = (max(values) - min(values)) / 2
    return f"{statistics.fmean(values):.2f}" + (f" ± {half:.2f}" if len(values) > 1 else "")


def prepare(work: Path) -> None:
    """The unseen subjects, shuffled copies of all four, and class images painted by the base."""
    import unseen

    if not (work / "unseen").exists():
        unseen.write_product(work / "unseen" / "product"), unseen.write_style(work / "unseen" / "style")
    for name, subject in subjects(work).items():
        if not (work / "shuffled" / name).exists():
            shuffle(shipped.data_path(Path(subject.data)), work / "shuffled" / name)
    if not (work / "class").exists():
        family = families.load("pocket")
        names = [name for i, name in enumerate(icons.OBJECTS) if i % 5 == 0][:48] + ["tea cup"] * 16
        colours = list(icons.COLOURS)
        captions = [prompt(name, colours[i % 12]) for i, name in enumerate(names)]
        (work / "class").mkdir(parents=True)
        for i, picture in enumerate(draw(family, captions, range(5000, 5000 + len(captions)))):
            picture.save(work / "class" / f"{i:02d}.png")
            (work / "class" / f"{i:02d}.txt").write_text(captions[i])


def shuffle(source: Path, out: Path) -> None:
    """The same pictures, each with the caption of the next."""
    raw = Path(tempfile.mkdtemp()) / "raw"
    raw.mkdir()
    found = dataset.read(source)
    captions = [e.caption for e in found.examples]
    for example, caption in zip(found.examples, captions[1:] + captions[:1], strict=True):
        target = raw / Path(example.name).name
        target.write_bytes(example.path.read_bytes())
        target.with_suffix(".txt").write_text(caption)
    dataset.prepare(raw, out, trigger=found.trigger, class_word=found.class_word, kind=found.kind)


def carry_out(trials: Sequence[Trial], work: Path, jobs: int) -> None:
    """Those not measured yet, a few at a time, each on one core."""
    due = [t for t in dict.fromkeys(trials) if not record(work, t).exists()]
    say(f"{len(trials) - len(due)} of {len(trials)} trials are known")
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        running = {pool.submit(measure, trial, work): trial for trial in due}
        for done in as_completed(running):
            trial, measures = running[done], done.result()
            weights.write_bytes(
                json.dumps({**trial._asdict(), "measures": measures._asdict()}).encode(), record(work, trial)
            )
            say(f"{trial.subject} | {trial.label} | seed {trial.seed} | {measures}")


def record(work: Path, trial: Trial) -> Path:
    """Where a trial's measures are kept: the name holds the base and the recipe it was run with."""
    base = weights.file_sha256(shipped.POCKET / "unet" / "diffusion_pytorch_model.safetensors")
    shipped_as = (shipped.RECIPES / f"pocket-{trial.subject.partition('-')[0]}.toml").read_text()
    key = hashlib.sha256(json.dumps([base, shipped_as, trial]).encode()).hexdigest()[:16]
    folder = work / "trials"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{trial.subject}-{key}.json"


def measure(trial: Trial, work: Path) -> Measures:
    hush()
    subject = subjects(work)[trial.subject]
    if not trial.trained:
        return look(subject, work, None)
    sets = [f"data.path={subject.data}", "sample.every=0", "sample.steps=1", 'sample.prompts=["a star"]',
            f"train.seed={trial.seed}", "train.checkpoint_every=100000"]  # fmt: skip
    written = {one.partition("=")[0] for one in trial.sets}
    sets = [one for one in sets if one.partition("=")[0] not in written]
    with tempfile.TemporaryDirectory() as folder:
        try:
            loaded = recipe.load(Path(f"pocket-{subject.kind}"), [*sets, *trial.sets])
            made = run.run(loaded, Path(folder) / "run", lambda _: None)
        except FinetuneError as e:
            return Measures(0, 0, 0, 0, 0, f"refused: {e.problem}")
        return look(subject, work, made.path)


def look(subject: Subject, work: Path, adapter: Path | None) -> Measures:
    """Paint with and without the trigger, with and without the adapter, and ask the judges."""
    import classifier

    referee, eyes, family = classifier.load(), likeness.Eyes.load(shipped.EYES), families.load("pocket")
    plain = without_trigger()
    before = draw(family, [p for p, _ in plain], range(7000, 7000 + len(plain)))
    pipeline = family.pipeline()
    if adapter:
        pipeline.load_lora_weights(str(adapter.parent), weight_name=adapter.name)
    asked = [p for p in subject.asked() for _ in range(4 if subject.kind == "product" else 2)]
    shown = draw(family, asked, range(6000, 6000 + len(asked)), pipeline)
    after = draw(family, [p for p, _ in plain], range(7000, 7000 + len(plain)), pipeline)
    same = draw(family, [asked[0]] * 6, range(8000, 8006), pipeline)
    seen, verdicts = eyes.of_pictures(shown), referee.judge(shown)
    if subject.kind == "product":
        real = eyes.of_pictures(
            [Image.open(e.path) for e in dataset.read(shipped.data_path(Path(subject.data))).examples]
        )
        fidelity = likeness.between(seen, real) / likeness.mutual(real)
        right = [v.background == c for v, c in zip(verdicts, repeated(subject.held_out, 4), strict=True)]
    else:
        fidelity = statistics.fmean(v.style == subject.style for v in verdicts)
        right = [v.object == name for v, name in zip(verdicts, repeated(subject.held_out, 2), strict=True)]
    kept = [v.object == name for v, (_, name) in zip(referee.judge(after), plain, strict=True)]
    return Measures(
        fidelity, statistics.fmean(right), 1 - likeness.agreement(eyes.of_pictures(before), eyes.of_pictures(after)),
        statistics.fmean(kept), likeness.diversity(eyes.of_pictures(same)),
    )  # fmt: skip


def without_trigger() -> list[tuple[str, str]]:
    """(prompt, object): 48 pictures that no training here should change."""
    names, colours = list(icons.OBJECTS), list(icons.COLOURS)
    return [(prompt(names[(i * 37) % len(names)], colours[i % 12]), names[(i * 37) % len(names)]) for i in range(48)]


def repeated(values: Sequence[str], times: int) -> Iterator[str]:
    return (value for value in values for _ in range(times))


def say(text: Any) -> None:
    typer.echo(text)


if __name__ == "__main__":
    app()
