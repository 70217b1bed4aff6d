"""What training computes, to the bit: short runs of every family through the command line, as digests.

`python tests/bits.py OUT.json` records them; tests/test_bits.py compares with tests/bits.json on a machine that
computes alike. The command line is all it knows of the package, so it runs on every version of it, and shows that two
agree: `PYTHONPATH=OTHER_CHECKOUT python tests/bits.py other.json`.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import struct
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from PIL import Image

BOTH = ["adapter.components=['denoiser', 'text_encoder']"]
RUNS: dict[str, tuple[str, list[str]]] = {
    # name -> tiny base, settings
    "sd15": ("sd15", [*BOTH, "objective.min_snr=5", "optimizer.text_encoder_learning_rate=5e-5", "train.ema=0.9"]),
    "sd15 prior": ("sd15", ["prior.mode=self", "prior.weight=0.5", "train.accumulate=2", "adapter.dropout=0.2"]),
    "sd15 full": ("sd15", ["adapter.method=full", "train.gradient_checkpointing=true"]),
    "sd15 half": ("sd15", ["train.precision=bf16", "export.dtype=float16"]),
    "sd15 8 bit": ("sd15", ["optimizer.name=adamw8bit", "optimizer.schedule=cosine", "optimizer.warmup_steps=1"]),
    "sd21": ("sd21", []),
    "sdxl": ("sdxl", ["adapter.components=['denoiser', 'text_encoder', 'text_encoder_2']"]),
    "sd3": ("sd3", []),
    "sd35": ("sd35", ["adapter.targets=all"]),
    "flux": ("flux", ["objective.guidance=1.5"]),
    "schnell": ("schnell", ["objective.distilled=true"]),
    "flux 4 bit": ("flux", ["train.base_bits=4", "train.precision=bf16"]),
    "zimage": ("zimage", ["adapter.targets=attention+ff"]),
    "turbo": ("turbo", ["objective.distilled=true"]),
    "qwen": ("qwen", []),
    "klein": ("klein", []),
    "klein distilled": ("klein-distilled", ["objective.distilled=true"]),
    "pocket": ("pocket", [*BOTH, "prior.mode=self", "data.resolution=64"]),
}
USUAL = [
    "data.trigger=sks", "data.class_word=cup", "data.resolution=128", "data.crop=random", "data.flip=true",
    "data.caption_dropout=0.3", "train.steps=3", "train.batch=2", "train.seed=7",
    "train.precision=fp32", "optimizer.learning_rate=1e-3", "validation.count=1", "validation.every=3",
    "sample.prompts=['a {trigger} cup', 'a red cup']", "sample.steps=2", "sample.every=3",
    "evaluate.count=0",
]  # fmt: skip


LORA = ["adapter.rank=4", "adapter.alpha=2"]


def machine() -> str:
    """What decides how sums round: two machines of one name should agree to the bit."""
    about = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", about.read_text()) if about.is_file() else None
    threads = f"{torch.get_num_threads()} threads"
    kind = cpu[1] if cpu else platform.processor()
    return f"torch {torch.__version__.partition('+')[0]}, {kind}, {torch.backends.cpu.get_cpu_capability()}, {threads}"


def record(name: str, root: Path) -> dict[str, object]:
    """Train one run under `root`, and say what it computed."""
    base, settings = RUNS[name]
    data, out = _pictures(root / "pictures"), root / "run"
    where = base if base == "pocket" else str(_tiny(root / "base", base))
    (root / "run.toml").write_text(f'base = "{where}"\n[data]\npath = "{data}"\n')
    whole = [*USUAL, *settings, *([] if "adapter.method=full" in settings else LORA)]
    finetune("train", str(root / "run.toml"), "--out", str(out), *(f"--set={s}" for s in whole))
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    steps = [e for e in events if e["event"] == "stepped"]
    return {
        "losses": [e["loss"] for e in steps],
        "prior losses": [e["prior_loss"] for e in steps],
        "held out": [e["loss"] for e in events if e["event"] == "validated"],
        "adapter": {str(f.relative_to(out)): _payload(f) for f in sorted(out.glob("adapter/**/*.safetensors"))},
        "pictures": {str(f.relative_to(out)): _pixels(f) for f in sorted(out.glob("sample*/*/*.png"))},
    }  # fmt: skip


def finetune(*arguments: str) -> None:
    """The command, in this process; its output goes to stderr."""
    from finetune.cli import main

    before, sys.argv = sys.argv, ["finetune", *arguments]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            main()
    except SystemExit as e:
        if e.code:
            raise AssertionError(f"finetune {' '.join(arguments[:2])} ended with {e.code}") from e
    finally:
        sys.argv = before


def _tiny(path: Path, variant: str) -> Path:
    try:
        from support.bases import tiny_base
    except ImportError:
        from models import tiny_base  # where it was at first
    return tiny_base(path, variant)


def _pictures(folder: Path) -> Path:
    """Five pictures of noise of three shapes, each with its caption."""
    folder.mkdir(parents=True)
    for i, (width, height) in enumerate([(128, 128), (160, 96), (96, 160), (128, 128), (200, 120)]):
        noise = np.random.default_rng((11, i)).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"sks cup number {i} on a table")
    return folder


def _payload(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha256(content[8 + struct.unpack("<Q", content[:8])[0] :]).hexdigest()[:16]


def _pixels(file: Path) -> str:
    with Image.open(file) as image:
        return hashlib.sha256(image.tobytes()).hexdigest()[:16]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    torch.set_num_threads(1)
    recorded = {}
    for each in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["FINETUNE_CACHE"] = str(Path(folder) / "cache")
            recorded[each] = record(each, Path(folder))
    Path(sys.argv[1]).write_text(json.dumps({machine(): recorded}, indent=1) + "\n")
