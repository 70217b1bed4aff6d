"""A run that is asked to go on and has come to its end: nothing is done again while its files are there."""

from collections.abc import Iterator
from pathlib import Path

from finetune import reading
from finetune.errors import NotLearnt
from finetune.events import Event, Finished, Note
from finetune.planning.names import exported_name
from finetune.planning.plan import Plan
from finetune.references import CHECKPOINTS
from finetune.reporting.history import read_history
from finetune.reporting.status import REPORT
from finetune.training.resume import differences, record, settings


def finished(plan: Plan, out: Path) -> Finished | None:
    """Its result, as it was told; None: there is something to do, as it has not ended, something else is asked of it,
    or a file is missing.

    Raises:
        NotLearnt: it ended so, and would end so again.
    """
    before, history = record(out), read_history(out)
    if differences(before.get("settings", {}), settings(plan.recipe)):
        return None
    if not all(map(reading.exists, [*_made(plan, out), out / CHECKPOINTS / f"step-{history.step:06d}"])):
        return None
    if before.get("outcome") == "not learnt":
        raise NotLearnt(f"{out} has ended, with nothing left to do: {before.get('reason', '')}", before.get("hint", ""))
    told = history.last("finished")
    if before.get("outcome") != "done" or told is None:
        return None
    page = out / REPORT
    return Finished(
        int(told.values.get("step", plan.steps)), "done", out / "adapter" / Path(str(told.values.get("path"))).name,
        out / "sheet.png", page=page if reading.is_file(page) else None,
    )  # fmt: skip


def said_again(result: Finished, out: Path) -> Iterator[Event]:
    """One sentence, and the result."""
    yield Note(f"{out} has ended at step {result.step}, and nothing is left to do: its file is {result.path}")
    yield result


def _made(plan: Plan, out: Path) -> Iterator[Path]:
    """What it has exported, whatever its method."""
    adapter, name = out / "adapter", exported_name(plan.recipe.name, out)
    yield out / "sheet.png"
    files = [adapter / f"{name}.safetensors", adapter / f"{name}-diffusers.safetensors", adapter / name]
    yield next((file for file in files if reading.exists(file)), files[0])
    if "diffusers" in plan.recipe.export.layouts:
        yield files[1]
    if "merged" in plan.recipe.export.layouts:
        yield adapter / "merged"
