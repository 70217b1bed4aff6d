"""A run on the screen: notes as lines, a progress bar with loss, speed and time left."""

import math
import time

from rich.console import Console
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
    Candidate,
    Evaluated,
    Event,
    Finished,
    Note,
    Picked,
    Resumed,
    Sampled,
    Saved,
    Scored,
    Stage,
    Stepped,
    TrainingEffect,
    Validated,
    Verified,
    Warned,
)  # fmt: skip
from finetune.reporting.markup import escape


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
            case Candidate(step, path):
                self._say(f"[dim]adapter of step {step}: {escape(str(path))}[/]")
            case Resumed(step, path):
                self._say(f"resumed after step {step} from {escape(str(path))}")
            case Sampled(_, paths):
                self._say(f"[dim]pictures: {escape(str(paths[0] if len(paths) == 1 else paths[0].parent))}[/]")
            case TrainingEffect():
                self._say(_effect(event))
            case Scored():
                self._say(_scored(event))
            case Picked(step, reason):
                self._say(f"picked step {step}: {escape(reason)}")
            case Evaluated(learnt=learnt, reasons=reasons):
                if learnt:
                    self._say(escape(f"learnt: {event.text}"))
                # what was not learnt ends in an error, which says the rest and the first reason
                for reason in reasons if learnt else reasons[1:]:
                    self._say(f"[yellow]perhaps:[/] {escape(reason)}")
            case Verified():
                self._say(escape(_verified(event)))
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


def _scored(event: Scored) -> str:
    shown = ", ".join(f"{name} {one.value:.2f}" for name, one in event.scores.items() if name != "diversity")
    return f"step {event.step}: seen in {event.seen.replace('/', ' of ')} prompts; {shown}"


def _effect(effect: TrainingEffect) -> str:
    moved = ", ".join(f"{component} {share:.2%}" for component, share in effect.weights.items())
    losses = f"loss on the training images {effect.base:.4f} -> {effect.adapted:.4f}"
    return f"weights moved: {moved}; prediction changed by {effect.output:.1%}; {losses}"


def _verified(report: Verified) -> str:
    found = f"{report.hit} of {report.expected} modules found"
    if report.outputs is not None:
        rounded = ", the base's rounding to bfloat16 included" if report.stock_output is None else ""
        found += f", differs from the trained model's outputs by {report.outputs:.1e} of the change{rounded}"
    return f"verified: {report.path.name} opened in a fresh base, {found}"


class _Loss(ProgressColumn):
    def render(self, task: Task) -> Text:
        loss = task.fields.get("loss")
        return Text("" if loss is None else f"loss {loss:.4f}")


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f} it/s" if task.speed else "")
