"""Where runs stand, on the screen: one run line by line, several as a table."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from finetune.cli.options import Output
from finetune.cli.wording import worded_here
from finetune.reporting.markup import escape
from finetune.reporting.status import RunStatus, read_status, run_folders

EVERY_S, EVERY_PLAIN_S = 2.0, 10.0
"""how often a followed run is read again: on a terminal, and into a log file"""
COLOURS = {"starting": "cyan", "running": "cyan", "done": "green", "interrupted": "yellow"}
"""of a state; others are red"""


def status(places: Sequence[Path], follow: bool, output: Output) -> None:
    """Show it once, or again and again until no run is going on."""
    found = _read(run_folders(places))
    console = Console(highlight=False, emoji=False)
    try:
        if follow and output.details and console.is_terminal:
            _redrawn(found, console)
        elif follow:
            _lines(found, output)
        else:
            _once(found, output, console)
    except KeyboardInterrupt:  # whoever looks stops looking; the run goes on
        return


def _read(folders: Iterable[Path]) -> list[RunStatus]:
    return [read_status(folder) for folder in folders]


def _once(found: Sequence[RunStatus], output: Output, console: Console) -> None:
    output.json([_plain(one) for one in found])
    if output.details:
        console.print(shown(found), soft_wrap=len(found) == 1)
    else:
        for one in found:
            output.result(line(one))


def _redrawn(found: Sequence[RunStatus], console: Console) -> None:
    with Live(shown(found), console=console, auto_refresh=False) as live:
        for now in _followed(found, EVERY_S):
            live.update(shown(now), refresh=True)


def _lines(found: Sequence[RunStatus], output: Output) -> None:
    """A line for each run that changed."""
    told: dict[Path, object] = {}
    for now in _followed(found, EVERY_PLAIN_S):
        for one in now:
            if told.get(one.folder) != (said := _plain(one) if output.as_json else line(one)):
                told[one.folder] = said
                output.json(said, indent=None)
                output.result(str(said))


def _followed(found: Sequence[RunStatus], every_s: float) -> Iterable[Sequence[RunStatus]]:
    """The same runs again and again; the last time when each has ended."""
    while True:
        yield found
        if not any(one.lives for one in found):
            return
        time.sleep(every_s)
        found = _read(one.folder for one in found)


def _plain(one: RunStatus) -> dict[str, Any]:
    return {**one.as_json(), "resume": _resume(one)}


def _resume(one: RunStatus) -> str | None:
    return worded_here(one.resume) if one.resume else None


def shown(found: Sequence[RunStatus]) -> RenderableType:
    """One run in full; several as a table, and how to go on with those that stopped."""
    if len(found) == 1:
        return _one(found[0])
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("run", "state", "step", "left", "loss", "scores"):
        table.add_column(name, overflow="fold")
    for one in found:
        table.add_row(escape(str(one.folder)), _state(one), steps(one), _left(one), _loss(one), _short_scores(one))
    stopped = [f"[dim]to go on:[/] {escape(command)}" for one in found if (command := _resume(one))]
    return Group(table, *stopped)


def _one(one: RunStatus) -> RenderableType:
    rows = {
        "step": ", ".join(filter(None, (steps(one), speed(one), _left(one)))),
        "stage": one.stage if one.stage != "training" else "",
        "loss": f"{_loss(one)}, mean of the last steps" if one.loss is not None else "",
        "scores": scores(one),
        "why": one.reason,
        "damage": "; ".join(one.damage),
        "page": str(one.page or ""),
        "sheet": str(one.sheet or ""),
        "adapter": str(one.adapter or ""),
        "process": f"{one.owner.pid} on {one.owner.host}" if one.owner else "",
        "last heard": ago(one.updated) if one.updated else "",
        "to go on": _resume(one) or "",
    }
    # lines and no table, which would break a command in two
    lines = [f"  [dim]{name:<{max(map(len, rows))}}[/]  {escape(text)}" for name, text in rows.items() if text]
    return Group(f"[bold]{escape(str(one.folder))}[/]  {_state(one)}", *lines)


def line(one: RunStatus) -> str:
    """The whole of it in one line."""
    parts = (f"{one.folder}: {one.state}", steps(one), f"loss {_loss(one)}" if one.loss is not None else "",
             speed(one), _left(one), _short_scores(one), one.reason, *one.damage)  # fmt: skip
    return "  ".join(filter(None, parts))


def _state(one: RunStatus) -> str:
    return f"[{COLOURS.get(one.state, 'red')}]{one.state}[/]"


def steps(one: RunStatus) -> str:
    return f"{one.step} of {one.steps}" if one.steps else ""


def speed(one: RunStatus) -> str:
    """In the unit that is above 1."""
    if one.speed is None:
        return ""
    return f"{one.speed:.1f} it/s" if one.speed >= 1 else f"{1 / one.speed:.1f} s/it"


def _left(one: RunStatus) -> str:
    return f"{duration(one.seconds_left)} left" if one.seconds_left is not None else ""


def _loss(one: RunStatus) -> str:
    return "" if one.loss is None else f"{one.loss:.4f}"


def scores(one: RunStatus) -> str:
    """In a sentence."""
    if one.scored_step is None:
        return ""
    seen = f"seen in {one.seen.replace('/', ' of ')} prompts; " if one.seen else ""
    return f"step {one.scored_step}: {seen}{_values(one)}"


def _short_scores(one: RunStatus) -> str:
    return f"{one.seen} seen, {_values(one)}" if one.scored_step is not None else ""


def _values(one: RunStatus) -> str:
    shown = {name: value for name, value in one.scores.items() if name != "diversity" and not name.startswith("held")}
    return ", ".join(f"{name} {value:.2f}" for name, value in shown.items())


def duration(seconds: float) -> str:
    """As a person says it: 40 s, 12 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def ago(moment: float) -> str:
    return f"{duration(max(0.0, time.time() - moment))} ago"
