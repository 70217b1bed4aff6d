"""Candidates scored on the way: when a run may stop, and whose adapter it exports."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from finetune import reading
from finetune import tensors as weights
from finetune.adapters import attach as adapters
from finetune.errors import RunError, VerifyError
from finetune.evaluation import subject
from finetune.evaluation.choose import Limits, because, best, reason_to_stop
from finetune.evaluation.evaluate import score
from finetune.events import Picked, Score, Scored
from finetune.files import layouts
from finetune.machine import CPU
from finetune.proof import export
from finetune.references import CANDIDATES, adapter_path, step_folders, step_of
from finetune.reporting.fields import is_event
from finetune.sampling.session import Session
from finetune.training.begin import Run
from finetune.training.learnt import subject_of
from finetune.training.stop import Events

SCORES = "scores.json"
"""beside a candidate's file"""


class Live:
    """Paints with the model that is being trained, its adapter switched off for the base's row."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @contextmanager
    def base(self, prompts: Sequence[str]) -> Iterator[Session]:
        with adapters.disabled(self.run.family.parts.loaded()), self.adapted(prompts) as session:
            yield session

    @contextmanager
    def adapted(self, prompts: Sequence[str]) -> Iterator[Session]:
        family, device = self.run.family, self.run.device
        family.parts.to(device.device, "vae")
        try:
            yield Session(family, self.run.data.captions, device.device, device.autocast)
        finally:
            family.parts.to(CPU, "vae")


def score_candidate(run: Run) -> Events:
    """Evaluate the candidate of this step, and keep its scores beside its file.

    Raises:
        BaseError: the judge cannot be used.
        RunError: pictures cannot be written. OSError: the scores cannot.
    """
    plan, step, out = run.plan, run.state.step, run.folder.path
    judge = subject.judge_for(plan.recipe.base, plan.recipe.evaluate.judge)
    assert judge is not None, "a recipe that asks for scores on the way is refused without"
    file = adapter_path(f"{out}@{step}")
    found = yield from score(subject_of(plan, file, out, judge, None), step, Live(run))
    content = {"step": step, "seen": found.seen, "scores": {name: list(one) for name, one in found.scores.items()}}
    weights.write_bytes(json.dumps(content, indent=1).encode(), file.parent / SCORES)


def scored(run: Run) -> list[Scored]:
    """The scores of all candidates up to this step, the earliest first."""
    files = [path / SCORES for path in step_folders(run.folder.path / CANDIDATES) if step_of(path) <= run.state.step]
    return [scores_in(file) for file in files if reading.is_file(file)]


def scores_in(file: Path) -> Scored:
    """What a candidate's scores.json says. Raises RunError: it is none of ours."""
    hint = "remove it: the step is then not chosen from"
    told = reading.read_json(file, RunError, hint)
    try:
        found = Scored(told["step"], told["seen"], {name: Score(*one) for name, one in told["scores"].items()})
    except (LookupError, TypeError, AttributeError) as e:
        raise RunError(f"{file} holds no scores of a step", hint) from e
    if not is_event("scored", {**told, "scores": {name: one._asdict() for name, one in found.scores.items()}}):
        raise RunError(f"{file} holds no scores of a step", hint)
    return found


def stop_reason(run: Run) -> str:
    """Why the run ends here, by evaluate.stop; "": it goes on. One decision for all ranks, which all must ask."""
    config = run.plan.recipe.evaluate
    if config.stop == "off":
        return ""
    reason = reason_to_stop(scored(run), config.patience) if run.folder.writes else ""
    vote = torch.tensor([float(bool(reason))], device=run.device.device)
    run.device.ranks.sum(vote)
    return reason or ("the first rank says so" if float(vote) else "")


def pick(run: Run) -> Events:
    """By evaluate.pick = "best", put the adapter of the best candidate into the model, to be exported.

    Raises:
        VerifyError: its file does not read back into this model.
    """
    config, some = run.plan.recipe.evaluate, scored(run)
    if config.pick == "last" or not some:
        return
    limits = Limits(config.max_drift, config.min_prompt, config.max_memorisation)
    chosen = best(some, limits)
    if chosen.step != run.state.step:
        _load(run, chosen.step)
    run.folder.picked = chosen.step
    yield Picked(chosen.step, because(chosen, some, limits))


def check_picked(run: Run, exported: str) -> None:
    """exported: the payload of the exported file, which must be the candidate's.

    Raises:
        VerifyError: it is another one.
    """
    if run.folder.picked is None:
        return
    file = adapter_path(f"{run.folder.path}@{run.folder.picked}")
    if weights.payload_sha256(file) != exported:
        raise VerifyError(f"the exported file is not the adapter of step {run.folder.picked}", f"that one is {file}")


def _load(run: Run, step: int) -> None:
    parts, family = run.family.parts.loaded(), run.family
    file = adapter_path(f"{run.folder.path}@{step}")
    found = layouts.read_adapter(file, export.base_sites(run.plan.recipe.base), family.name)
    trained = adapters.read_changes(parts)
    if found.problems or not trained.keys() <= found.modules.keys():
        raise VerifyError(f"{file} does not read back: {(found.problems or ['modules are missing'])[0]}", "resume")
    names = adapters.component_names(run.plan.recipe.adapter, family.denoiser_name)
    adapters.start_from({name: parts[name] for name in names}, {name: found.modules[name] for name in trained})
