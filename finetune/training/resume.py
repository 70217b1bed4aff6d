"""Which recipe a resumed run goes on by: its own, with what the new call changes of it, which is said or refused."""

import dataclasses
import json
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune import reading, recipe
from finetune.errors import InputError, RunError
from finetune.events import Event
from finetune.machine import meet
from finetune.planning import plan as planning
from finetune.planning.plan import Plan
from finetune.planning.schedule import Schedule, batch_in_words
from finetune.recipe import Data, Loaded, Recipe
from finetune.references import CHECKPOINTS
from finetune.reporting.history import RECIPE_FILE, RECORD
from finetune.training.stop import resuming

MAY_CHANGE = (
    "name", "train.steps", "train.epochs", "train.checkpoint_every", "train.keep_last", "train.patience",
    "train.compile", "train.accumulate", "train.shard", "validation.every",
)  # fmt: skip
"""recipe keys a resumed run may change, beside sample, evaluate, export and report; train.accumulate as the number of
ranks changes, so that a step has as many pictures as before"""
A_STEP = "pictures a step"
"""of a run's identity: batch x accumulate x ranks, as its place in the data is counted in steps"""
MASK_OUTSIDE = "data.mask_outside"
"""which records of runs from before there were masks do not have"""
_NOT_COMPARED = (
    "sample.",
    "evaluate.",
    "export.",
    "report.",
    "data.path",
    "data.cache",
    "base",
    "prior.path",
    "adapter.init_from",
)
"""free to change, or compared by content"""


def own_recipe(out: Path, given: Path | None = None, overrides: Sequence[str] = ()) -> Loaded:
    """The recipe that the run in `out` keeps, with what this call changes of it: overrides, and what was edited in the
    recipe file since the run was begun with it. Overrides of earlier calls are in the run's own.

    Raises:
        RunError: there is no run.
        RecipeError: the recipe cannot be read, or a change of it is wrong.
    """
    own = out / RECIPE_FILE
    if not reading.is_file(own):
        raise no_run(out)
    begun = record(out).get("file")
    if given is None or reading.real_path(recipe.find_recipe(given)) == reading.real_path(own):
        return recipe.load(own, overrides)._replace(file=begun or {})
    file = recipe.written_in(given)
    if begun is None:  # by an earlier version, which did not keep it
        loaded = recipe.load(own, overrides)
        said = f"the run goes on by its own recipe, {own}, and not by {given}; what shall change of it is an override"
        return loaded._replace(file=file, notices=(*loaded.notices, said))
    edits = {key: value for key, value in file.items() if key not in begun or begun[key] != value}
    return recipe.load(own, overrides, edits)._replace(file=file)


def holds_run(out: Path) -> bool:
    return reading.exists(out / RECORD) or reading.exists(out / CHECKPOINTS)


def goes_on(out: Path) -> bool:
    """Is there a run to resume in `out`? The first rank says so for all, before it makes the folder."""
    return meet().gathered(holds_run(out))[0]


def no_run(out: Path) -> RunError:
    return RunError(f"{out} holds no run to resume", "leave out `resume`, or check the path")


def record(out: Path) -> dict[str, Any]:
    """What run.json says; empty when there is none."""
    try:
        return reading.read_json(out / RECORD, RunError, "")
    except RunError:
        return {}


def settings(resolved: Recipe) -> dict[str, Any]:
    """key path -> value of a resolved recipe, as JSON has it."""
    found = {key: recipe.value(resolved, key) for key in recipe.keys()}
    return dict(json.loads(json.dumps(found, default=str)))


def compared(resolved: Recipe) -> dict[str, str]:
    """key path -> value of all that must be the same for a run to be resumed."""
    return {
        key: str(recipe.value(resolved, key))
        for key in recipe.keys()
        if key not in MAY_CHANGE and not key.startswith(_NOT_COMPARED)
    }


def differences(saved: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """What is not the same, in words."""
    return [f"{k}: was {saved.get(k, 'absent')}, now {now.get(k, 'absent')}" for k in sorted({*saved, *now})
            if saved.get(k) != now.get(k)]  # fmt: skip


def resolving_resumed(loaded: Loaded, out: Path, world: int) -> Generator[Event, None, Plan]:
    """The plan of a run that goes on; its notices say what is changed of it.

    Raises:
        RunError: names all that may not be changed.
    """
    changed = sorted(key for key, source in loaded.sources.items() if source == "override")
    try:
        plan = yield from planning.resolving(loaded, world)
    except InputError as e:
        if not changed:
            raise
        said = f"{out} cannot be resumed with what this call changes ({', '.join(changed)}): {e.problem}"
        raise RunError(said, "go on with its own recipe", resuming(out)) from e
    before = record(out)
    now = compared(plan.recipe)
    identity = begun_as(before.get("identity", {}))
    refuse_changes(out, {key: identity[key] for key in now if key in identity}, now if identity else {})
    if A_STEP in identity:
        refuse_another_batch(out, identity[A_STEP], plan.train.schedule)
    saved = {MASK_OUTSIDE: Data.model_fields["mask_outside"].default, **before.get("settings", {})}
    changes = differences(saved, settings(plan.recipe)) if "settings" in before else []
    return dataclasses.replace(plan, notices=(*plan.notices, *(f"changed by this call: {said}" for said in changes)))


def begun_as(identity: Mapping[str, str]) -> dict[str, str]:
    """The identity of a run, also of one that an earlier version began on one rank."""
    found = dict(identity)
    if found:
        found.setdefault(MASK_OUTSIDE, str(Data.model_fields["mask_outside"].default))
    accumulate, batch = found.pop("train.accumulate", ""), found.get("train.batch", "")
    return {A_STEP: str(int(batch) * int(accumulate)), **found} if batch and accumulate else found


def refuse_another_batch(out: Path, before: str, schedule: Schedule) -> None:
    """Raises RunError where a step had another number of pictures: the place in the data would be another."""
    if str(schedule.samples_per_step) == before:
        return
    accumulate, rest = divmod(int(before), schedule.batch * schedule.world_size)
    hint = "as many ranks as before" if rest or not accumulate else f"set train.accumulate = {accumulate}"
    raise RunError(
        f"{out} cannot be resumed with {batch_in_words(schedule)}: it was begun with {before}, and its place in the "
        "data is counted in steps",
        hint,
    )


def _with_defaults(saved: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """What a run was, with the keys that the version which began it did not have: it did as they do by default."""
    usual = compared(Recipe.model_validate({"base": "pocket", "data": {"path": "."}}))
    return {key: value for key, value in usual.items() if key in now} | dict(saved)


def refuse_changes(out: Path, saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises RunError where a run was another one."""
    if changed := differences(_with_defaults(saved, now) if saved else saved, now):
        raise RunError(
            f"{out} cannot be resumed: it was another run\n  " + "\n  ".join(changed),
            "go on with its own recipe",
            resuming(out),
        )
