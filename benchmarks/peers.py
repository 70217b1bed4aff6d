"""Our command beside other trainers' scripts: one base, one folder of pictures, one batch, rank and precision.

    python benchmarks/peers.py --peers DIR [--base pocket|narrow] [--rounds 3] [--steps 100]

DIR holds their sources as they are published, and what kohya's imports beside ours:

    git clone https://github.com/huggingface/diffusers DIR/diffusers && git -C DIR/diffusers checkout 58eb52c
    git clone https://github.com/kohya-ss/sd-scripts DIR/sd-scripts && git -C DIR/sd-scripts checkout 48d368f
    pip install --no-deps --target DIR/site imagesize voluptuous opencv-python-headless sentencepiece ftfy wcwidth

Their scripts run unmodified, through `peer_script.py`. pocket: the bundled base at 64 px, beside diffusers' two.
narrow: Stable Diffusion 1.5 at a quarter of its widths with random weights, at 128 px, beside kohya's with its cache of
latents, and diffusers'; kohya's UNet cannot be the pocket base. The programs take turns. `file` is when theirs is
written, and when ours is *verified*. Ratios are medians over the rounds, of seconds of the clock and of the processor;
the bars are held by the processor's, which other programs disturb less: with OMP_NUM_THREADS=1 they are the clock's on
an idle machine. The exit code is 1 when a bar is missed.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import psutil

HERE = Path(__file__).parent.parent
SCRIPT = Path(__file__).parent / "peer_script.py"
PICTURES = HERE / "data" / "examples" / "style" / "images"
CAPTION = "sks style"
BATCH, RANK, RATE = 4, 8, "1e-3"
PROGRESS = re.compile(r"[Ss]teps:.*?\| *(\d+)/(\d+) \[")
WITH_FEED_FORWARD = "attention+ff"


class Task(NamedTuple):
    """What every program is given."""

    base: Path
    px: int
    steps: int
    data: Path
    """a folder a program, as it wants pictures and captions"""
    peers: Path


class Program(NamedTuple):
    """A trainer's command, made for an empty folder to write into."""

    command: Callable[[Task, Path], list[str]]
    result: str
    """the file that it leaves; of ours an event says that it is proved"""
    targets: str = "attention"
    """the layers that it puts LoRA on, in our words"""
    site: bool = False


class Moment(NamedTuple):
    """Seconds since the command was given."""

    clock: float
    processor: float


class Run(NamedTuple):
    first: Moment
    """the first step is done"""
    last: Moment
    file: Moment
    end: Moment
    steps: int
    peak_bytes: int

    def step(self, of: str) -> float:
        """Seconds a step, without the first."""
        return float(getattr(self.last, of) - getattr(self.first, of)) / (self.steps - 1)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--peers", type=Path, required=True)
    arguments.add_argument("--base", choices=("pocket", "narrow"), default="pocket")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--steps", type=int, default=100)
    arguments.add_argument("--only", nargs="*", default=[], help="the peers to run beside")
    said = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task = prepared(Path(folder), said.base, said.steps, said.peers.resolve())
        names = said.only or (["dreambooth", "text_to_image"] if said.base == "pocket" else ["kohya", "dreambooth"])
        found = {name: list(side_by_side(task, Path(folder), name, said.rounds)) for name in names}
    missed = [bar for name, pairs in found.items() for bar in report(name, pairs)]
    return 1 if missed else 0


def prepared(folder: Path, base: str, steps: int, peers: Path) -> Task:
    """The base and the data, on disk."""
    data = folder / "data"
    kohya = data / "kohya" / f"1_{CAPTION}"
    for place in (data / "dreambooth", data / "captioned", kohya):
        shutil.copytree(PICTURES, place)
    names = sorted(path.name for path in PICTURES.iterdir())
    rows = [json.dumps({"file_name": name, "text": CAPTION}) + "\n" for name in names]
    (data / "captioned" / "metadata.jsonl").write_text("".join(rows))
    for name in names:
        (kohya / name).with_suffix(".txt").write_text(CAPTION)
    if base == "pocket":
        return Task(HERE / "data" / "pocket", 64, steps, data, peers)
    from narrow_base import make_narrow_base  # diffusers, which the other base does not need

    make_narrow_base(folder / "narrow", folder / "tokenizers" / "openai_clip-vit-large-patch14")
    return Task(folder / "narrow", 128, steps, data, peers)


def side_by_side(task: Task, folder: Path, peer: str, rounds: int) -> Iterator[tuple[Run, Run]]:
    """Ours and theirs in each round, the order turning."""
    programs = {"ours": Program(ours(PEERS[peer].targets), ""), peer: PEERS[peer]}
    for turn in range(rounds):
        done = {}
        for name in list(programs)[:: -1 if turn % 2 else 1]:
            out = folder / f"{peer}-{name}-{turn}"
            done[name] = run(task, programs[name], out)
            say(f"{name:<14}{line(done[name])}")
        yield done["ours"], done[peer]


# -- programs ---------------------------------------------------------------------------------------------------------


def ours(targets: str) -> Callable[[Task, Path], list[str]]:
    def command(task: Task, out: Path) -> list[str]:
        settings = {
            "data.resolution": task.px, "data.caption_dropout": 0.0, "data.trigger": "sks", "prior.mode": "off",
            "adapter.components": ["denoiser"], "adapter.targets": targets, "adapter.rank": RANK,
            "optimizer.learning_rate": float(RATE), "optimizer.schedule": "constant", "train.steps": task.steps,
            "train.batch": BATCH, "train.precision": "fp32", "train.checkpoint_every": task.steps, "sample.every": 0,
            "sample.steps": 2, "sample.prompts": [CAPTION], "evaluate.count": 0,
        }  # fmt: skip
        tables = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
        head = f"base = {json.dumps(str(task.base))}\ndata.path = {json.dumps(str(task.data / 'captioned'))}\n"
        out.with_suffix(".toml").write_text(head + "".join(tables))
        return ["-m", "finetune", "train", str(out.with_suffix(".toml")), "--out", str(out), "--json"]

    return command


def dreambooth(task: Task, out: Path) -> list[str]:
    script = task.peers / "diffusers" / "examples" / "dreambooth" / "train_dreambooth_lora.py"
    return [str(SCRIPT), str(script), *_diffusers(task, out),
            "--instance_data_dir", str(task.data / "dreambooth"), "--instance_prompt", CAPTION]  # fmt: skip


def text_to_image(task: Task, out: Path) -> list[str]:
    script = task.peers / "diffusers" / "examples" / "text_to_image" / "train_text_to_image_lora.py"
    return [str(SCRIPT), str(script), *_diffusers(task, out),
            "--train_data_dir", str(task.data / "captioned"), "--cache_dir", f"{out}-cache"]  # fmt: skip


def _diffusers(task: Task, out: Path) -> list[str]:
    return [
        "--pretrained_model_name_or_path", str(task.base), "--output_dir", str(out), "--resolution", str(task.px),
        "--train_batch_size", str(BATCH), "--rank", str(RANK), "--max_train_steps", str(task.steps),
        "--learning_rate", RATE, "--mixed_precision", "no", "--seed", "0", "--dataloader_num_workers", "0",
    ]  # fmt: skip


def kohya(task: Task, out: Path) -> list[str]:
    return [
        str(SCRIPT), "--narrow", "4,16", str(task.peers / "sd-scripts" / "train_network.py"),
        "--pretrained_model_name_or_path", str(task.base), "--output_dir", str(out), "--resolution", str(task.px),
        "--tokenizer_cache_dir", str(task.base.parent / "tokenizers"), "--train_data_dir", str(task.data / "kohya"),
        "--caption_extension", ".txt", "--train_batch_size", str(BATCH), "--max_train_steps", str(task.steps),
        "--network_module", "networks.lora", "--network_dim", str(RANK), "--network_alpha", str(RANK),
        "--network_train_unet_only", "--learning_rate", RATE, "--mixed_precision", "no", "--seed", "0",
        "--save_model_as", "safetensors", "--cache_latents", "--max_data_loader_n_workers", "0", "--sdpa",
    ]  # fmt: skip


PEERS = {
    "dreambooth": Program(dreambooth, "pytorch_lora_weights.safetensors"),
    "text_to_image": Program(text_to_image, "pytorch_lora_weights.safetensors"),
    "kohya": Program(kohya, "last.safetensors", WITH_FEED_FORWARD, site=True),
}


# -- measuring --------------------------------------------------------------------------------------------------------


def run(task: Task, program: Program, out: Path) -> Run:
    """Raises SystemExit: it failed; its last words are printed."""
    paths = [str(HERE)] if not program.result else [str(task.peers / "site")] if program.site else []
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "TQDM_MININTERVAL": "0",
        "FINETUNE_CACHE": f"{out}-cache",
    }  # fmt: skip
    command = [sys.executable, *program.command(task, out)]
    child = subprocess.Popen(command, cwd=out.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    watch = Watch(child, out / program.result if program.result else None)
    assert child.stdout is not None
    with child.stdout as stream:
        for text in lines(stream):
            watch.heard(text)
    return watch.ended(task.steps)


def lines(stream: IO[bytes]) -> Iterator[str]:
    """What a program writes, as it comes: a progress bar ends its lines with a carriage return."""
    held = b""
    while piece := os.read(stream.fileno(), 65536):
        *whole, held = re.split(rb"[\r\n]", held + piece)
        yield from (one.decode(errors="replace") for one in whole)
    yield held.decode(errors="replace")


class Watch:
    """Notes when the first and the last step were done, and when the file was there."""

    def __init__(self, child: "subprocess.Popen[bytes]", result: Path | None) -> None:
        self.child, self.process, self.began = child, psutil.Process(child.pid), time.perf_counter()
        self.moments: dict[str, Moment] = {}
        self.said: list[str] = []
        self.done = 0
        """steps"""
        if result:
            threading.Thread(target=self._await, args=(result,), daemon=True).start()

    def heard(self, text: str) -> None:
        self.said.append(text)
        if text.startswith('{"event": "verified"'):
            self._note("file")
        elif (step := self._step(text)) > self.done:
            self.moments.setdefault("first", self._now())
            self._note("last")
            self.done = step

    def ended(self, steps: int) -> Run:
        _, status, usage = os.wait4(self.child.pid, 0)
        self.child.returncode = os.waitstatus_to_exitcode(status)
        end = Moment(time.perf_counter() - self.began, usage.ru_utime + usage.ru_stime)
        if self.child.returncode or not {"first", "last", "file"} <= self.moments.keys():
            raise SystemExit("\n".join(self.said[-30:]) + f"\nended with {self.child.returncode}")
        return Run(**self.moments, end=end, steps=steps, peak_bytes=usage.ru_maxrss * 1024)

    def _step(self, text: str) -> int:
        if text.startswith('{"event": "stepped"'):
            return int(json.loads(text)["step"])
        found = PROGRESS.search(text)
        return int(found[1]) if found else 0

    def _note(self, what: str) -> None:
        self.moments[what] = self._now()

    def _now(self) -> Moment:
        times = self.process.cpu_times()
        return Moment(time.perf_counter() - self.began, times.user + times.system)

    def _await(self, result: Path) -> None:
        while self.child.returncode is None:
            if result.exists():
                return self._note("file")
            time.sleep(0.02)
        return None


# -- telling ----------------------------------------------------------------------------------------------------------


class Bar(NamedTuple):
    """Ours against theirs: at least or at most so much."""

    what: str
    value: Callable[[Run, str], float]
    limit: float
    least: bool


def bars(peer: str) -> list[Bar]:
    return [
        Bar("steps a second", lambda run, of: 1 / run.step(of), 1.1 if peer == "kohya" else 1.25, True),
        Bar("time to the first step", lambda run, of: float(getattr(run.first, of)), 0.5, False),
        Bar("command to file (ours verified)", lambda run, of: float(getattr(run.file, of)), 1.0, False),
        Bar("peak memory", lambda run, _: float(run.peak_bytes), float("inf"), False),
    ]


def report(peer: str, pairs: list[tuple[Run, Run]]) -> list[str]:
    """A row a measure; returns the bars that are missed."""
    say(f"\n{'ours against ' + peer:<34}{'ours':>10}{'theirs':>10}{'clock':>8}{'processor':>11}   bar")
    missed = []
    for bar in bars(peer):
        own, their = (statistics.median(bar.value(pair[i], "processor") for pair in pairs) for i in (0, 1))
        clock, processor = (
            statistics.median(bar.value(a, of) / bar.value(b, of) for a, b in pairs) for of in ("clock", "processor")
        )
        held = processor >= bar.limit if bar.least else processor <= bar.limit
        verdict = f"{'at least' if bar.least else 'at most'} {bar.limit}: {'held' if held else 'MISSED'}"
        scale = 2**20 if bar.what == "peak memory" else 1
        say(f"{bar.what:<34}{own / scale:>10.2f}{their / scale:>10.2f}{clock:>8.2f}{processor:>11.2f}   "
            + (verdict if bar.limit != float("inf") else "MiB"))  # fmt: skip
        missed += [] if held else [f"{peer}: {bar.what}"]
    return missed


def line(run: Run) -> str:
    told = {"first": run.first, "last": run.last, "file": run.file, "end": run.end}
    times = "   ".join(f"{name} {m.clock:6.2f} ({m.processor:6.2f})" for name, m in told.items())
    return f"{times}   {1 / run.step('clock'):6.2f} steps/s ({1 / run.step('processor'):.2f})"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
