"""The adapter of each sampled step as a whole file, and what every file of a run says of itself."""

import shutil
from pathlib import Path

from finetune import tensors as weights
from finetune.adapters import attach as adapters
from finetune.adapters.change import AdapterState
from finetune.data.rights.provenance import bounded
from finetune.events import Candidate, Event, Warned
from finetune.files import layouts
from finetune.files.metadata import About
from finetune.files.parents import ParentRights, rights_of
from finetune.planning.names import exported_name
from finetune.planning.public import credits_of, licenses_in_words, public_recipe, told_recipe
from finetune.proof import export
from finetune.references import CANDIDATES
from finetune.reporting.public import public
from finetune.saving import whole_or_not
from finetune.training.begin import Run


def write_candidate(run: Run) -> list[Event]:
    """candidates/step-000500/NAME-step000500.safetensors, whole or not at all: what the run would export if it ended
    here. One that a run wrote before it was resumed from further back is replaced by an equal one; another is kept
    beside under a name of its own.

    Raises:
        OSError: the disk is full, or gone.
        VerifyError: the file's number format cannot hold the weights.
    """
    step = run.state.step
    modules = adapters.read_changes(run.family.parts.loaded())
    folder = run.folder.path / CANDIDATES / f"step-{step:06d}"
    layout = layouts.main_layout(modules)
    file = f"{name_of(run)}-step{step:06d}{'' if layout == 'universal' else '-diffusers'}.safetensors"
    events: list[Event] = []
    with whole_or_not(folder) as beside:
        path = export.write_file(modules, beside / file, layout, run.plan.recipe.export.dtype, about_run(run, step))
        before = _payloads(folder)
        if before and before != _payloads(beside):
            kept = _set_aside(folder, before[0])
            events.append(Warned(f"the adapter of step {step} is not the one that was there, now {kept}: "
                                 "the run went another way, on another machine or with other settings"))  # fmt: skip
    return [*events, Candidate(step, folder / path.name)]


def name_of(run: Run) -> str:
    """Of the exported file."""
    return exported_name(run.plan.recipe.name, run.folder.path)


def about_run(run: Run, step: int) -> About:
    """What a file of this step says of itself; no path of this machine."""
    plan, data, identity = run.plan, run.plan.data, run.folder.identity
    told, classes = public_recipe(plan.recipe, data), [p.example for p in plan.prior.placed] if plan.prior else []
    before = rights_of(start) if (start := plan.recipe.adapter.init_from) else ParentRights()
    credits = [*credits_of(data, classes).split("\n"), *(public(line).text for line in before.credits.split("\n"))]
    return About.of(
        plan.facts, told.data.resolution, base=told.base, base_fingerprint=identity["base"],
        trigger=told.data.trigger or "", class_word=told.data.class_word or "", kind=data.kind,
        title=told.export.title or name_of(run), license=told.export.license, recipe=told_recipe(plan.recipe, data),
        steps=step, dataset_fingerprint=data.fingerprint, dataset_images=len(plan.train.placed),
        dataset_license=public(licenses_in_words(data, classes)).text,
        dataset_credits=bounded([*dict.fromkeys(filter(None, credits))]),
        parent=identity.get("start", ""), parent_license=public(before.license).text,
    )  # fmt: skip


def described(run: Run) -> dict[str, str]:
    """What a checkpoint's adapter says of itself; nothing in full fine-tuning.

    Raises:
        RunError: a text of the recipe names this machine.
    """
    modules: AdapterState = adapters.read_changes(run.family.parts.loaded())
    return export.own_metadata(modules, name_of(run), about_run(run, run.state.step)) if modules else {}


def _payloads(folder: Path) -> list[str]:
    return [weights.payload_sha256(file) for file in sorted(folder.glob("*.safetensors"))]


def _set_aside(folder: Path, payload: str) -> Path:
    kept = folder.with_name(f"{folder.name}-{payload[:8]}")
    shutil.rmtree(kept, ignore_errors=True)
    return folder.rename(kept)
