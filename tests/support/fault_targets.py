"""What is written to disk, each thing by the code that writes it: how it begins, what is done, and how it is read."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import nn

from finetune import cli, families, optimizers, recipe
from finetune import tensors as weights
from finetune.captioning.captioner import Answer
from finetune.captioning.dataset import caption_dataset
from finetune.data.dataset import read_dataset
from finetune.data.prepare import prepare
from finetune.data.text.captions import clean_words
from finetune.encoding.store import Store
from finetune.errors import FinetuneError
from finetune.events import Stepped, unheard
from finetune.files import layouts
from finetune.files.metadata import About
from finetune.pages.report import write_report
from finetune.proof import export
from finetune.reporting.history import read_history
from finetune.reporting.jsonl import JsonLines
from finetune.reporting.status import read_status
from finetune.reporting.trackers import _known, _remember
from finetune.sampling.png import write_png
from finetune.training import checkpoint
from finetune.training.loop import State
from support.adapters import small_adapter
from support.photos import pictures

ABSENT = "absent"


class Target(NamedTuple):
    begun: Callable[[Path], None]
    """makes what is there before, in an empty folder"""
    act: Callable[[Path], None]
    """what is struck; what it raises is printed as its callers do"""
    read: Callable[[Path], str]
    """what a reader makes of it: the same text for the same content"""
    most: int
    """points of it that are tried"""
    new: bool = False
    """a reader may find it absent: there was nothing before, or for an instant there is nothing"""
    once: bool = False
    """what is done is not done again: a second call refuses"""
    steps: Callable[[str, str, str], bool] = lambda found, old, new: found in (old, new)
    """(found, before, after): is that one of the whole states?"""


def worded(work: Callable[[], object]) -> None:
    """What is raised to callers that word it."""
    try:
        work()
    except (OSError, FinetuneError) as e:
        sys.stderr.write(f"error: {e}\n")
        raise SystemExit(2) from e


def command(*arguments: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        sys.argv = ["finetune", *arguments]
        cli.main()

    return act


# --- checkpoints ------------------------------------------------------------------------------------------------------


def state(step: int) -> State:
    chance = torch.Generator().manual_seed(step)
    trainable = {
        "unet": {"to_q.lora_A": nn.Parameter(torch.randn(80, 80, generator=chance))},
        "text_encoder": {"q.lora_A": nn.Parameter(torch.randn(3, 5, generator=chance))},
    }
    groups = [(c, list(p.values()), 1e-2) for c, p in trainable.items()]
    made = State(trainable, optimizers.build(recipe.optimizer("adamw"), groups), step=step)
    made.ema = [p.detach() + step for p in made.parameters]
    return made


def saved(step: int) -> Callable[[Path], None]:
    return lambda folder: worded(
        lambda: checkpoint.save_checkpoint(folder / "checkpoints", state(step), {"base": "ab12"}, 1)
    )


def newest(folder: Path) -> str:
    found, _ = checkpoint.newest(folder / "checkpoints")
    if found is None:
        return ABSENT
    again = state(0)
    checkpoint.load_checkpoint(found, again)
    assert again.ema is not None
    values = [*again.parameters, *again.ema]
    return f"{again.step} {weights.fingerprint({str(n): tensor for n, tensor in enumerate(values)})}"


# --- adapters ---------------------------------------------------------------------------------------------------------


def about() -> About:
    return About.of(families.detect("pocket"), base="pocket", title="A mug")


def peft_folder(seed: int) -> Callable[[Path], None]:
    return lambda folder: worded(lambda: export.write_peft_folder(small_adapter(seed), folder / "peft", "mug", about()))


def universal(seed: int) -> Callable[[Path], None]:
    return lambda folder: worded(
        lambda: export.write_file(small_adapter(seed), folder / "mug.safetensors", "universal", "float32", about())
    )


def adapter(name: str) -> Callable[[Path], str]:
    def read(folder: Path) -> str:
        try:
            found = layouts.read_adapter(folder / name)
        except FinetuneError as e:
            return ABSENT if not (folder / name).exists() else f"refused: {e}"
        return f"{found.digest()} {found.problems}"

    return read


# --- cache, pictures, pages -------------------------------------------------------------------------------------------

KEY = bytes.fromhex("ab" * 32)


def cached(folder: Path) -> None:
    def work() -> None:
        store = Store(folder / "cache")
        store.put("image", KEY, {"latents": torch.arange(5000.0)})
        store.seal("image")

    worded(work)


def entry(folder: Path) -> str:
    """What is taken for there when a run starts, and then read."""
    entries = Store(folder / "cache").entries("image", [KEY])
    if not entries.has(0):
        return ABSENT
    found = entries.read(0)
    return "it is taken for there, and cannot be read" if found is None else weights.fingerprint(found)


def picture(folder: Path) -> None:
    image = Image.frombytes("RGB", (64, 64), bytes(range(256)) * 48)
    worded(lambda: write_png(image, folder / "01.png", {"prompt": "a cup"}))


def seen(folder: Path) -> str:
    if not (folder / "01.png").exists():
        return ABSENT
    with Image.open(folder / "01.png") as found:
        return f"{hash(found.tobytes())} {found.text}"  # type: ignore[attr-defined]


def run_begun(folder: Path) -> None:
    (folder / "run.json").write_text(json.dumps({"outcome": "done", "steps": 2}))
    stepped(folder, 1)
    write_report(folder)
    stepped(folder, 2)


def stepped(folder: Path, number: int) -> None:
    JsonLines(folder / "events.jsonl")(Stepped(number, 4, 0.5, None, 1.0, {"unet": 1e-3}, 0.1, False, 0))


def page_written(folder: Path) -> None:
    worded(lambda: write_report(folder))


def page(folder: Path) -> str:
    text = (folder / "report.html").read_text(encoding="utf-8")
    whole = text.lower().startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    return f"whole, with curves: {'id=curves' in text.replace(chr(34), '')}" if whole else "torn"


# --- what a run writes down -------------------------------------------------------------------------------------------


def history_begun(folder: Path) -> None:
    record(folder, "running")
    stepped(folder, 1)


def record(folder: Path, outcome: str) -> None:
    weights.write_bytes(json.dumps({"outcome": outcome, "steps": 4}).encode(), folder / "run.json")


def history_goes_on(folder: Path) -> None:
    def work() -> None:
        for number in (2, 3):
            stepped(folder, number)
        record(folder, "done")

    worded(work)


def history(folder: Path) -> str:
    """What is told of it; a line that was cut off may be lost, and is named."""
    found = read_history(folder)
    read_status(folder)
    numbers = [event.values["step"] for event in found.events]
    return f"{found.outcome} {numbers} {[text for text in found.damage if text.startswith('run.json')]}"


def any_prefix(found: str, old: str, new: str) -> bool:
    """Events are not flushed: their last lines may be lost."""
    return re.fullmatch(r"(running|done) \[1(, 2(, 3)?)?\] \[\]", found) is not None


RECIPE = """
name = "mug"
base = "pocket"
[data]
path = "photos"
trigger = "sks"
resolution = 32
[adapter]
rank = 2
targets = ["attn2.to_q", "attn2.to_v"]
[optimizer]
learning_rate = 1e-2
[train]
steps = 2
checkpoint_every = 1
keep_last = 1
precision = "fp32"
[sample]
steps = 1
every = 0
prompts = ["a sks cup"]
[evaluate]
count = 0
"""


def run_planned(folder: Path) -> None:
    pictures(folder / "photos", ((64, 64), (64, 60)))
    (folder / "mine.toml").write_text(RECIPE)


def trained(folder: Path) -> None:
    """Goes on where there is something to go on with."""
    begun = any((folder / "run" / name).exists() for name in ("run.json", "checkpoints"))
    command("train", "mine.toml", "--out", "run", "--quiet", *["--resume"] * begun)(folder)


def run_adapter(folder: Path) -> str:
    """The exported file of a run that says it is done; all else of it is read by `status`, whatever it is."""
    if not (folder / "run").exists():
        return ABSENT
    read_status(folder / "run")
    checkpoint.newest(folder / "run/checkpoints")
    file = folder / "run/adapter/mug.safetensors"
    done = read_history(folder / "run").outcome == "done"
    if file.exists():
        return f"{layouts.read_adapter(file).digest()} {done}".removesuffix(" False")
    return "done without a file" if done else ABSENT


def remembered(folder: Path) -> None:
    worded(lambda: _remember(folder, "wandb", "abcd"))


def ids(folder: Path) -> str:
    return str(_known(folder))


# --- datasets ---------------------------------------------------------------------------------------------------------


def raw(folder: Path) -> None:
    pictures(folder / "photos", ((64, 64), (64, 48), (48, 64)))
    Image.open(folder / "photos/00.png").convert("L").save(folder / "photos/grey.png")
    (folder / "photos/grey.txt").write_text("a sks grey thing")


def dataset(name: str) -> Callable[[Path], str]:
    def read(folder: Path) -> str:
        if not (folder / name).exists() or all(path.name.startswith(".") for path in (folder / name).iterdir()):
            return ABSENT
        found = read_dataset(folder / name, allow_uncaptioned=True)
        return f"{found.fingerprint} {[(e.name, e.caption, e.origin) for e in found.examples]} {found.card}"

    return read


def half_captioned(folder: Path) -> None:
    """A prepared dataset of which a person captioned one picture."""
    raw(folder)
    for text in sorted((folder / "photos").glob("*.txt"))[1:]:
        text.unlink()
    prepare(folder / "photos", folder / "new", trigger="sks", allow_uncaptioned=True)
    shutil.rmtree(folder / "photos")


class Names:
    """Says of each picture how it is called."""

    batch = 1

    def check(self, files: list[Path]) -> None: ...

    def __call__(self, files: list[Path]) -> list[Answer]:
        return [Answer(f"a sks thing named {file.stem}") for file in files]


def captioned(folder: Path) -> None:
    worded(lambda: unheard(caption_dataset(folder / "new", clean_words("sks", None, None), lambda _: Names())))


def captions(folder: Path) -> str:
    """Who captioned what; of a person, what it says."""
    found = read_dataset(folder / "new", allow_uncaptioned=True)
    return json.dumps([found.trigger, *((e.name, e.origin, e.caption) for e in found.examples)])


def captioned_in_part(found: str, old: str, new: str) -> bool:
    """Each caption is the one before or the one after, and the trigger is there."""
    rows = [json.loads(text) for text in (found, old, new)]
    return len(rows[0]) == len(rows[1]) and all(f in (o, n) for f, o, n in zip(*rows, strict=True))


TARGETS: dict[str, Target] = {
    "a checkpoint": Target(saved(1), saved(2), newest, 90),
    "an adapter file": Target(universal(1), universal(2), adapter("mug.safetensors"), 30),
    "an adapter's PEFT folder": Target(peft_folder(1), peft_folder(2), adapter("peft"), 50, new=True),
    "a converted file": Target(
        universal(1), command("export", "--from", "mug.safetensors", "--out", "new.safetensors"),
        adapter("new.safetensors"), 30, new=True, once=True,
    ),
    "a cache entry": Target(lambda folder: None, cached, entry, 30, new=True),
    "a picture": Target(lambda folder: None, picture, seen, 20, new=True),
    "a run's page": Target(run_begun, page_written, page, 20),
    "a run's record": Target(history_begun, history_goes_on, history, 40, steps=any_prefix),
    "a run": Target(
        run_planned, trained, run_adapter, 12, new=True, steps=lambda found, old, new: new.startswith(found)
    ),
    "trackers' names": Target(lambda folder: _remember(folder, "mlflow", "x"), remembered, ids, 20),
    "a prepared dataset": Target(
        raw, command("prepare", "photos", "--out", "new", "--trigger", "sks", "--quiet"), dataset("new"), 45, new=True,
        once=True,
    ),
    "captions": Target(half_captioned, captioned, captions, 40, steps=captioned_in_part),
}  # fmt: skip
