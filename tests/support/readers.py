"""Every reader of a file that may come from elsewhere: a sound file of it, and the call that reads it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from finetune import families, recipe, tensors
from finetune.captioning.vocabulary import read_vocabulary
from finetune.data.audit import audit_folder
from finetune.data.dataset import read_dataset
from finetune.data.folder import Rules
from finetune.data.images import decode
from finetune.data.prepare import prepare
from finetune.data.text.captions import clean_words
from finetune.data.text.prompts import expand
from finetune.encoding.single_files import SingleFiles
from finetune.encoding.store import Store, usage
from finetune.errors import FinetuneError
from finetune.evaluation import subject
from finetune.evaluation.compare import ComparisonRequest, asked_json
from finetune.events import (
    CaptionFit,
    Evaluated,
    Event,
    Finished,
    Picked,
    Sampled,
    Score,
    Scored,
    Stage,
    Stepped,
    TrainingEffect,
    Validated,
    Verified,
    Warned,
    WeightsChanged,
)  # fmt: skip
from finetune.files import layouts, peft
from finetune.files.inspection import inspect
from finetune.pages.comparison import claim
from finetune.pages.report import write_report
from finetune.reporting.jsonl import JsonLines
from finetune.reporting.owner import LOCK, owner_of
from finetune.reporting.status import read_status
from finetune.reporting.trackers import IDS, _known
from finetune.resources import POCKET, VOCABULARIES
from finetune.sampling.prompt_file import read_prompts
from finetune.sampling.request import AdapterWeight
from finetune.sampling.words import adapters_in_use
from finetune.training import checkpoint
from finetune.training.pick import scores_in
from support.adapters import pocket_adapter
from support.fault_targets import RECIPE, saved, state
from support.photos import pictures

KEY = bytes.fromhex("ab" * 32)
SHARD = f"cache/v3/image/{'0f' * 8}"
OLD_ENTRY = f"cache/v2/image/ab/{'ab' * 32}.safetensors"
STEP = "checkpoints/step-000002"


class Reader(NamedTuple):
    file: str
    """in a place that `sound_place` made"""
    read: Callable[[Path], object]
    """of the place"""
    dear: int = 1
    """how many others could be read in its time"""

    def tried(self, place: Path, content: bytes) -> None:
        """Raises whatever is no error of ours, or has no words."""
        file = place / self.file
        file.unlink(missing_ok=True)  # it may be a link, or be mapped into memory
        file.write_bytes(content)
        try:
            self.read(place)
        except FinetuneError as e:
            assert str(e).strip() and e.exit_code != 1


SCORE = Score(0.7, 0.6, 0.8)
EVENTS: tuple[Event, ...] = (
    Stage("training", 4), Stepped(1, 4, 0.5, None, 1.0, {"unet": 1e-3}, 0.1, False, 0),
    Stepped(2, 4, float("nan"), 0.1, 1.0, {"unet": 1e-3}, 0.1, True, 1 << 30), Validated(2, 0.4, {"0.5": 0.4}),
    Scored(2, "3/4", {"likeness": SCORE}), Sampled(2, (Path("samples/step-000002.png"),)), Picked(2, "it is like them"),
    TrainingEffect(0.5, 0.4, CaptionFit(0.8, 0.5), None, {"unet": 0.01}, 0.02),
    WeightsChanged({"unet.mid_block.attentions.0.to_q": 0.01}), Warned("only 2 pictures"),
    Verified(Path("adapter/mug.safetensors"), 2, 2, 0.0, 1e-6, None, ("it is small",)),
    Evaluated(Path("adapter/mug.safetensors"), True, "9/10", {"likeness": SCORE, "held-out loss": SCORE},
              ("few steps",), "it is seen"),
    Finished(2, "done", Path("adapter/mug.safetensors"), Path("sheet.png")),
)  # fmt: skip
SCORES = {"step": 2, "seen": "3/4", "scores": {"likeness": list(SCORE)}}
TABLES = {
    "lines": ("metadata.jsonl", '{"file_name": "a.png", "text": "a cup"}\n'),
    "csv": ("metadata.csv", 'file_name,text\na.png,"a cup"\n'),
    "sidecar": ("a.txt", "a sks cup\n"),
}
"""folder -> where its captions are, and what they say"""


def sound_place(place: Path) -> Path:
    """A folder with a sound file for each reader."""
    pictures(place / "photos", ((40, 40), (40, 32)))
    Image.open(place / "photos/00.png").save(place / "photo.jpg")
    Image.open(place / "photos/00.png").save(place / "photo.webp")
    Image.open(place / "photos/00.png").save(place / "photo.tif")
    prepare(place / "photos", place / "prepared", trigger="sks")
    for name, text in TABLES.items():
        (place / name).mkdir()
        shutil.copy(place / "photos/00.png", place / name / "a.png")
        (place / name / text[0]).write_text(text[1])
    (place / "mine.toml").write_text(RECIPE)
    (place / "words.toml").write_bytes((VOCABULARIES / "pocket.toml").read_bytes())
    (place / "prompts.txt").write_text("a {trigger} cup\nthe red cup, caf\u00e9\n", encoding="utf-8")
    pocket_adapter(place / "mug.safetensors", 0)
    peft.write_peft(layouts.read_adapter(place / "mug.safetensors").modules, place / "peft", {})
    shutil.copytree(POCKET, place / "base", copy_function=linked_or_copied)
    saved(2)(place)
    cached(place, {"latents": state(1).parameters[0].detach()})
    run = place / "run"
    run.mkdir()
    told = JsonLines(run / "events.jsonl")
    for event in EVENTS:
        told(event)
    (run / "run.json").write_text(json.dumps({"outcome": "done", "reason": "", "steps": 4, "picked_step": 2}))
    (run / "recipe.toml").write_text(recipe.dumps(recipe.load(place / "mine.toml").recipe))
    (run / "adapter").mkdir()
    shutil.copy(place / "mug.safetensors", run / "adapter")
    (run / IDS).write_text('{"wandb": "abc"}')
    (run / "candidates/step-000002").mkdir(parents=True)
    (run / "candidates/step-000002/scores.json").write_text(json.dumps(SCORES))
    (place / "carried.toml").write_text((run / "recipe.toml").read_text())
    (place / "comparison").mkdir()
    asked = ComparisonRequest(("mug.safetensors",), prompts=("a cup",))
    (place / "comparison/comparison.json").write_text(json.dumps({"asked": asked_json(asked)}))
    (run / LOCK).write_text('{"host": "x", "pid": 1}')
    return place


def cached(place: Path, entry: dict[str, torch.Tensor]) -> None:
    """An entry, also in the format before."""
    store = Store(place / "cache")
    store.put("image", KEY, entry)
    store.seal("image")
    for file in (place / "cache/v3/image").iterdir():
        file.rename(place / f"{SHARD}{file.suffix}")
    (place / OLD_ENTRY).parent.mkdir(parents=True)
    tensors.write_tensors(entry, place / OLD_ENTRY, {"sha256": tensors.fingerprint(entry)}, flush=False)


def index(place: Path) -> object:
    """Whatever it names is looked at; what is damaged is forgotten."""
    entries = Store(place / "cache").entries("image", [KEY])
    found = entries.read(0)
    entries.drop(0)
    return found, usage(place / "cache")


def linked_or_copied(source: str, target: str) -> None:
    if Path(source).stat().st_size > 1 << 16:
        Path(target).symlink_to(source)
    else:
        shutil.copy(source, target)


def of(file: str, read: Callable[[Path], object]) -> Reader:
    """What is read by its path."""
    return Reader(file, lambda place: read(place / file))


def base(place: Path) -> object:
    info = families.detect(str(place / "base"))
    return families.family_class(info.family).on_meta(families.locate(str(place / "base")), info)


def checkpoint_of(place: Path) -> object:
    found, _ = checkpoint.newest(place / "checkpoints")
    return found and checkpoint.load_checkpoint(found, state(0))


def signed(place: Path) -> object:
    """A checkpoint whose manifest agrees with whatever is in it."""
    folder = place / STEP
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    manifest = {path.relative_to(folder).as_posix(): tensors.file_sha256(path) for path in files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return checkpoint_of(place)


def carried(place: Path) -> object:
    """The recipe that an adapter file carries."""
    text = (place / "carried.toml").read_bytes().decode("utf-8", "replace")
    told = {"finetune.recipe": text, "finetune.base": text[:40]}
    tensors.write_tensors({"x.alpha": torch.ones(1)}, place / "carried.safetensors", told, flush=False)
    return subject.of_path(place / "carried.safetensors", data=place / "prepared")


def captions(folder: str) -> Reader:
    words = clean_words("sks", None, None)
    file = f"{folder}/{TABLES[folder][0]}"
    return Reader(file, lambda place: audit_folder(place / folder, words, Rules(decode=False)))


def prompts(file: Path) -> object:
    return [expand(line.prompt.text, "sks", "mug") for line in read_prompts(file).lines]


def status(place: Path) -> object:
    return json.dumps(read_status(place / "run").as_json())


def page(place: Path) -> object:
    return write_report(place / "run")


def judged(place: Path) -> object:
    return subject.of_path(place / "run", base="pocket", data=place / "prepared")


def compared(place: Path) -> object:
    wanted = ComparisonRequest(("mug.safetensors",), prompts=("a cup",))
    return claim(place / "comparison", wanted)


READERS: dict[str, Reader] = {
    "recipe": of("mine.toml", recipe.load),
    "vocabulary": of("words.toml", lambda file: read_vocabulary(str(file))),
    "dataset card": Reader("prepared/dataset.toml", lambda place: read_dataset(place / "prepared")),
    "prepared captions": Reader("prepared/metadata.jsonl", lambda place: read_dataset(place / "prepared")),
    "captions in JSON lines": captions("lines"),
    "captions in CSV": captions("csv"),
    "caption file": captions("sidecar"),
    "prompts": of("prompts.txt", prompts),
    "PNG": of("photos/00.png", decode.open_rgb),
    "JPEG": of("photo.jpg", decode.open_rgb),
    "WebP": of("photo.webp", decode.open_rgb),
    "TIFF": of("photo.tif", decode.open_rgb),
    "adapter": of("mug.safetensors", layouts.read_adapter),
    "adapter, inspected": of("mug.safetensors", inspect),
    "words of an adapter": of("mug.safetensors", lambda file: adapters_in_use([AdapterWeight(file, 1.0)])),
    "recipe of an adapter": Reader("carried.toml", carried),
    "PEFT configuration": Reader("peft/unet/adapter_config.json", lambda place: layouts.read_adapter(place / "peft")),
    "PEFT weights": Reader("peft/unet/adapter_model.safetensors", lambda place: layouts.read_adapter(place / "peft")),
    "pipeline index": Reader("base/model_index.json", base),
    "denoiser's configuration": Reader("base/unet/config.json", base),
    "text encoder's configuration": Reader("base/text_encoder/config.json", base),
    "scheduler": Reader("base/scheduler/scheduler_config.json", base),
    "checkpoint's manifest": Reader(f"{STEP}/manifest.json", checkpoint_of),
    "checkpoint's state": Reader(f"{STEP}/state.json", signed),
    "checkpoint's optimizer": Reader(f"{STEP}/optimizer.safetensors", signed),
    "checkpoint's weights": Reader(f"{STEP}/trainable.safetensors", signed),
    "cache entry": Reader(f"{SHARD}.shard", lambda place: Store(place / "cache").read("image", KEY)),
    "index of the cache": Reader(f"{SHARD}.index", index),
    "old cache entry": Reader(OLD_ENTRY, lambda place: SingleFiles(place / "cache/v2/image").read(KEY)),
    "a run's events": Reader("run/events.jsonl", status),
    "a run's record": Reader("run/run.json", status),
    "a run's recipe": Reader("run/recipe.toml", status),
    "events, on its page": Reader("run/events.jsonl", page, dear=10),
    "recipe, on its page": Reader("run/recipe.toml", page, dear=10),
    "record, on its page": Reader("run/run.json", page, dear=10),
    "events, to be judged": Reader("run/events.jsonl", judged),
    "recipe, to be judged": Reader("run/recipe.toml", judged),
    "a candidate's scores": of("run/candidates/step-000002/scores.json", scores_in),
    "owner": Reader(f"run/{LOCK}", lambda place: owner_of(place / "run")),
    "trackers' names": Reader(f"run/{IDS}", lambda place: _known(place / "run")),
    "comparison": Reader("comparison/comparison.json", compared),
}  # fmt: skip
