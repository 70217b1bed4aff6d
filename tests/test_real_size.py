"""pytest -m slow tests/test_real_size.py: Stable Diffusion 1.5 and XL at true size, random weights, on this CPU.

Two real steps of each at the resolution it was made for, and the memory that `plan` predicts. Takes minutes, 12 GB of
memory and 12 GB of disk.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import pictures

from finetune.families.checkpoints import CONFIGS

pytestmark = pytest.mark.slow
SCRIPT = """
import ctypes, json, sys, torch
from pathlib import Path
from finetune import families, memory, plan as planning, recipe, run, trainer
torch.set_num_threads(2)
def now(field):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(field)) * 1024
plan = planning.settle(recipe.load(Path(sys.argv[1])))
told = sum(c.bytes for c in planning.components(plan) if c.trainable) + memory.activation_bytes(plan)
machine = run.open_machine(plan.recipe.train.precision)
family = run.open_base(plan)
made = run.encode(plan, family, machine, lambda _: None)
family.parts.release(*family.encoders)
ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what encoding took
before = now("VmRSS")
state = run.attach(plan, family, machine)
for part in family.parts.loaded().values():
    for tensor in (*part.parameters(), *part.buffers()):
        tensor.data.view(-1)[:1].clone()
open("/proc/self/clear_refs", "w").write("5")  # forget the peak of loading
losses = [s.loss for s in trainer.train(family, state, plan, made.batches, machine.ranks, machine.autocast)]
print(json.dumps({"told": told, "peak": now("VmHWM") - before, "losses": losses}))
"""


def write_base(folder: Path, line: str, dtype: torch.dtype) -> Path:
    """The published configs with random weights, a part at a time."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from finetune.families.checkpoints import load_tokenizer

    kinds: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    if line == "sdxl":
        kinds["text_encoder_2"] = CLIPTextModelWithProjection
    for part, kind in kinds.items():
        config = json.loads((CONFIGS / line / part / "config.json").read_text())
        torch.set_default_dtype(dtype)
        made = kind(CLIPTextConfig.from_dict(config)) if part.startswith("text") else kind.from_config(config)
        torch.set_default_dtype(torch.float32)
        made.save_pretrained(folder / part)
        del made
    for part in ("scheduler", "tokenizer", "tokenizer_2"):
        if (CONFIGS / line / part).is_dir():
            (folder / part).mkdir(parents=True)
            for file in (CONFIGS / line / part).iterdir():
                (folder / part / file.name).write_bytes(file.read_bytes())
            if part.startswith("tokenizer"):
                load_tokenizer(line, part=part).save_pretrained(folder / part)  # type: ignore[arg-type]
    (folder / "model_index.json").write_bytes((CONFIGS / line / "model_index.json").read_bytes())
    return folder


def test_two_steps_of_sd15_at_true_size_take_the_memory_that_plan_says(tmp_path: Path) -> None:
    found = two_steps("sd1", "fp32", 512, False, tmp_path)
    assert found["peak"] == pytest.approx(found["told"], rel=0.15), found


def test_two_steps_of_sdxl_at_true_size_take_the_memory_that_plan_says(tmp_path: Path) -> None:
    found = two_steps("sdxl", "bf16", 1024, True, tmp_path)
    assert found["peak"] == pytest.approx(found["told"], rel=0.15), found


def two_steps(line: str, precision: str, px: int, checkpointing: bool, tmp_path: Path) -> dict[str, Any]:
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    base = write_base(tmp_path / "base", line, dtype)
    data = pictures(tmp_path / "data", [(px, px)] * 2)
    (tmp_path / "recipe.toml").write_text(
        f'base = "{base}"\n[data]\npath = "{data}"\nresolution = {px}\ncache = "{tmp_path / "cache"}"\n'
        f'[train]\nsteps = 2\nprecision = "{precision}"\ngradient_checkpointing = {str(checkpointing).lower()}\n'
        '[sample]\nprompts = ["a"]\n'
    )
    # the C library keeps freed blocks for later (docs/log.md): given back at once, what is measured is what is needed
    given_back = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "recipe.toml")]
    done = subprocess.run(command, capture_output=True, text=True, env=given_back)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(line, found)  # noqa: T201 - the figures of docs/log.md, shown with -s
    assert len(found["losses"]) == 2 and all(0 < loss < 100 for loss in found["losses"])
    return dict(found)
