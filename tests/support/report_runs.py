"""Folders of runs for the page: a real short one, what it would be had it learnt, and one as large as they get."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.errors import NotLearnt
from finetune.resources import EXAMPLES
from finetune.sampling.png import write_png
from finetune.training import run
from finetune.training.stop import follow
from support.runs import short

SCORES = {
    "likeness": [0.97, 0.92, 1.03], "prompt": [0.78, 0.44, 1.0], "drift": [0.03, 0.01, 0.05],
    "diversity": [1.06, 0.85, 1.22], "memorisation": [0.02, 0.0, 0.05],
}  # fmt: skip


def trained(out: Path) -> Path:
    """Six steps with all that a run can do on the way, judged at its end: not learnt."""
    loaded = short(
        EXAMPLES / "product", train__steps=6, sample__every=3, validation__count=1, validation__every=3,
        sample__prompts=("a sks cup on a red background", "a star"), evaluate__count=4, evaluate__every=3,
        evaluate__pick="best",
    )  # fmt: skip
    try:
        follow(run.run(loaded, out), lambda _: None)
    except NotLearnt:
        return out
    raise AssertionError("six steps cannot have learnt it")


def copied(source: Path, to: Path) -> Path:
    shutil.copytree(source, to)
    return to


def edited(run_folder: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    """Each event of its log changed, or left out."""
    log = run_folder / "events.jsonl"
    told = [change(json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines()]
    log.write_text("".join(json.dumps(one) + "\n" for one in told if one), encoding="utf-8")
    return run_folder


def recorded(run_folder: Path, **values: object) -> Path:
    """Values of its run.json changed."""
    file = run_folder / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")
    return run_folder


def as_learnt(run_folder: Path, reasons: tuple[str, ...] = ()) -> Path:
    """The same run, had its verdict been good."""
    said = {
        "learnt": True, "seen": "9/9", "reasons": list(reasons), "text": "the product is seen in 9 of 9 prompts",
        "scores": {name: dict(zip(("value", "low", "high"), three, strict=True)) for name, three in SCORES.items()},
    }  # fmt: skip
    edited(run_folder, lambda told: {**told, **said} if told["event"] == "evaluated" else told)
    return recorded(run_folder, outcome="done", reason="", hint="")


def before(run_folder: Path, step: int) -> Path:
    """The same run as it was when that step was taken."""

    def early(told: dict[str, Any]) -> dict[str, Any] | None:
        late = told["event"] in ("verified", "evaluated", "picked", "training_effect", "weights_changed", "finished")
        return None if late or told.get("step", 0) > step else told

    for path in (run_folder / "samples").iterdir():
        if path.name.startswith("final") or int(path.stem[5:]) > step:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(run_folder / "adapter")
    (run_folder / "sheet.png").unlink()
    return recorded(edited(run_folder, early), outcome="running", reason="", hint="", picked_step=None)


def texture(seed: int, px: int) -> Image.Image:
    """As hard to pack as a photo: large shapes, and grain."""
    chance = np.random.default_rng(seed)
    shapes = Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
        (px, px), Image.Resampling.BICUBIC
    )
    grain = chance.normal(0, 6, (px, px, 1))
    return Image.fromarray(np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8))


def large(folder: Path, steps: int = 2000, kept: int = 40, prompts: int = 8, px: int = 512, photos: int = 60) -> Path:
    """A run as large as they get, made without training: pictures of each step and prompt, candidates with scores."""
    asked = [f"a sks mug on a table, number {n}" for n in range(prompts)]
    drawn = [folder / "drawn" / f"{n:02d}.png" for n in range(2 * prompts)]
    for n, path in enumerate(drawn):
        write_png(texture(n, px), path, {"prompt": asked[n % prompts], "seed": str(n % prompts)})
    at = [steps * n // kept for n in range(kept + 1)]
    for place in [*(f"step-{step:06d}" for step in at), "final-base", "final-mug"]:
        for n in range(prompts):
            _linked(drawn[n + prompts * (place != "final-base")], folder / "samples" / place / f"{n:02d}.png")
    for n in range(24):
        for adapter in ("", "mug.safetensors"):
            facts = {"prompt": asked[n % prompts] if n < 16 else f"a star {n}", "seed": str(n), "adapter": adapter}
            write_png(texture(n, px // 4), folder / "evaluation" / f"{n}{adapter[:1]}.png", facts)
    for step in at[1:]:
        place = folder / "candidates" / f"step-{step:06d}"
        place.mkdir(parents=True)
        (place / f"mug-step{step:06d}.safetensors").write_bytes(b"weights")
        told = {"step": step, "seen": "9/10", "scores": SCORES}
        (place / "scores.json").write_text(json.dumps(told), encoding="utf-8")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "mug.safetensors").write_bytes(b"weights")
    data = folder / "photos"
    data.mkdir()
    for n in range(photos):
        texture(1000 + n, px).save(data / f"{n:03d}.jpg", quality=90)
        (data / f"{n:03d}.txt").write_text(f"a sks mug on a table, seen from side {n}", encoding="utf-8")
    _log(folder, steps, at, data, asked)
    shutil.rmtree(folder / "drawn")
    return folder


def _linked(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, to)


def _log(folder: Path, steps: int, at: list[int], data: Path, asked: list[str]) -> None:
    scores = {name: dict(zip(("value", "low", "high"), three, strict=True)) for name, three in SCORES.items()}
    modules = {f"unet.down_blocks.{b}.attentions.{a}.to_{k}": 0.01 * (b + a + 1) for b in range(20) for a in range(5)
               for k in "qkv"}  # fmt: skip
    chance = np.random.default_rng(0)
    told: list[Mapping[str, object]] = []
    for step in range(1, steps + 1):
        rates = {"unet": 1e-4, "text_encoder": 5e-5}
        told.append({"event": "stepped", "step": step, "steps": steps, "loss": 0.5 + 0.3 * float(chance.random()),
                     "prior_loss": 0.1, "grad_norm": float(chance.random()), "rates": rates, "seconds": 1.0,
                     "skipped": False})  # fmt: skip
        if step in at:
            told.append({"event": "scored", "step": step, "seen": "9/10", "scores": scores})
            bands = {"0.1": 0.2, "0.5": 0.4, "0.9": 0.6}
            told.append({"event": "validated", "step": step, "loss": 0.4, "bands": bands})
    file = str(folder / "adapter" / "mug.safetensors")
    told += [
        {"event": "weights_changed", "modules": modules},
        {"event": "verified", "path": file, "expected": 300, "hit": 300, "live": 0.0, "outputs": 1e-6,
         "stock_output": 0.0, "findings": []},
        {"event": "evaluated", "path": file, "learnt": True, "seen": "16/16", "scores": scores, "reasons": [],
         "text": "the product is seen in 16 of 16 prompts", "sheet": ""},
    ]  # fmt: skip
    lines = [json.dumps({**one, "time": 1.8e9 + n}) for n, one in enumerate(told)]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run_json = {"outcome": "done", "reason": "", "steps": steps, "picked_step": None, "stride": 64}
    (folder / "run.json").write_text(json.dumps(run_json), encoding="utf-8")
    prompts = json.dumps(asked)
    (folder / "recipe.toml").write_text(
        f'name = "mug"\nbase = "pocket"\n[data]\npath = {json.dumps(str(data))}\ntrigger = "sks"\nclass_word = "mug"\n'
        f"resolution = 512\nmax_aspect = 2.0\n[train]\nsteps = {steps}\n[sample]\nprompts = {prompts}\n",
        encoding="utf-8",
    )
