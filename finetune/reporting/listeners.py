"""Events to people and programs: a progress bar, JSON lines, TensorBoard."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)  # fmt: skip
from rich.text import Text

from finetune.events import (
    Advanced,
    Event,
    Finished,
    Note,
    Resumed,
    Sampled,
    Saved,
    Stage,
    Stepped,
    Validated,
    Warned,
)  # fmt: skip

Listen = Callable[[Event], None]


def everyone(*listeners: Listen) -> Listen:
    """One listener that tells all of them."""

    def tell(event: Event) -> None:
        for listen in listeners:
            listen(event)

    return tell


class Screen:
    """Notes as lines, stages as progress bars with loss, speed and time left; plain lines without a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.last = 0.0
        self.first: Stepped | None = None
        self.began = 0.0
        self.mean: float | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case Stage(name, total):
                self._begin(name, total)
            case Advanced(done):
                self._move(done)
            case Stepped():
                self._move(event.step, loss=self._smoothed(event.loss))
                self._plain(event)
                if event.skipped:
                    self._say(f"[yellow]step {event.step}: the loss was not finite; nothing was changed[/]")
            case Note(text):
                self._say(escape(text))
            case Warned(text):
                self._say(f"[yellow]warning:[/] {escape(text)}")
            case Validated(step, loss, bands):
                levels = "  ".join(f"{level}: {value:.4f}" for level, value in bands.items())
                self._say(f"held out at step {step}: {loss:.4f}   by noise level  {levels}")
            case Saved(step, path):
                self._say(f"[dim]saved step {step}: {escape(str(path))}[/]")
            case Resumed(step, path):
                self._say(f"resumed after step {step} from {escape(str(path))}")
            case Sampled(_, paths):
                self._say(f"[dim]pictures: {escape(str(paths[0] if len(paths) == 1 else paths[0].parent))}[/]")
            case Finished():
                self.close()

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
        self.bar = self.task = None

    def _begin(self, name: str, total: int) -> None:
        self.close()
        self.first = None
        if total and self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Loss(), _Speed(),
                TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), console=self.console,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(name, total=total, loss=None)
        elif total:
            self.console.print(f"{name}: {total}")

    def _move(self, done: int, loss: float | None = None) -> None:
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=done, loss=loss)

    def _smoothed(self, loss: float) -> float | None:
        """Over about 20 steps, as one step's loss depends mostly on its noise levels; without those not finite."""
        if math.isfinite(loss):
            self.mean = loss if self.mean is None else 0.95 * self.mean + 0.05 * loss
        return self.mean

    def _plain(self, event: Stepped) -> None:
        """Without a terminal: a line now and then, for a log file."""
        now = time.monotonic()
        if self.first is None or event.step <= self.first.step:
            self.first, self.began = event, now - event.seconds
        if self.bar is None and (now - self.last > 10 or event.step in (1, event.steps)):
            self.last = now
            speed = (event.step - self.first.step + 1) / max(now - self.began, 1e-9)
            left = (event.steps - event.step) / speed
            self.console.print(
                f"step {event.step}/{event.steps}  loss {event.loss:.4f}  {speed:.2f} it/s  ETA {left:.0f} s"
            )

    def _say(self, markup: str) -> None:
        (self.bar.console if self.bar else self.console).print(markup, highlight=False, soft_wrap=True)


class _Loss(ProgressColumn):
    def render(self, task: Task) -> Text:
        loss = task.fields.get("loss")
        return Text("" if loss is None else f"loss {loss:.4f}")


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f} it/s" if task.speed else "")


class JsonLines:
    """One line an event, appended; a line cut off by a kill is ended first."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        if path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def __call__(self, event: Event) -> None:
        if isinstance(event, Advanced):
            return
        line = {"event": type(event).__name__.lower(), "time": round(time.time(), 3), **_plain(event)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


class TensorBoard:
    """Losses, learning rates, gradient norms and held-out losses, beside the run. Opened at the first number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None
        self.purge: int | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case Resumed(step, _):
                self.purge = step + 1  # curves past the checkpoint are drawn again
            case Stepped():
                writer = self._open()
                writer.add_scalar("loss/train", event.loss, event.step)
                writer.add_scalar("gradient_norm", event.grad_norm, event.step)
                if event.prior_loss is not None:
                    writer.add_scalar("loss/prior", event.prior_loss, event.step)
                for component, rate in event.rates.items():
                    writer.add_scalar(f"learning_rate/{component}", rate, event.step)
            case Validated(step, loss, bands):
                writer = self._open()
                writer.add_scalar("loss/held_out", loss, step)
                for level, value in bands.items():
                    writer.add_scalar(f"loss/held_out_at_{level}", value, step)
            case Finished():
                self.close()

    def close(self) -> None:
        if self.writer:
            self.writer.close()
        self.writer = None

    def _open(self) -> Any:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder), purge_step=self.purge)
        return self.writer


def _plain(event: NamedTuple) -> dict[str, object]:
    """An event as JSON can say it; a number that is not finite becomes text, as JSON has none."""
    return {name: _json(value) for name, value in event._asdict().items()}


def _json(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_json(v) for v in value]
    if isinstance(value, dict):
        return {k: _json(v) for k, v in value.items()}
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value
