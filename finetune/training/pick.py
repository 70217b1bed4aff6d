"""Candidates scored on the way: when a run may stop, and whose adapter it exports."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from finetune import reading
from finetune import tensors as weights
from finetune.adapters import attach as adapters
from finetune.encoding.text import Captions
from finetune.errors import RunError, VerifyError
from finetune.evaluation import subject
from finetune.evaluation.choose import Limits, because, best, reason_to_stop
from finetune.evaluation.evaluate import score
from finetune.events import Picked, Score, Scored
from finetune.families.base import Family
from finetune.files import layouts
from finetune.machine import CPU, Device
from finetune.proof import export
from finetune.ranks import ALONE, Ranks
from finetune.references import CANDIDATES, adapter_path, step_folders, step_of
from finetune.reporting.fields import is_event
from finetune.sampling.request import SampleRequest
from finetune.sampling.session import Picture, Session
from finetune.training.begin import Run
from finetune.training.learnt import subject_of
from finetune.training.stop import Events

SCORES = "scores.json"
"""beside a candidate's file"""


class Live:
    """Paints with the model that is being trained, its adapter switched off for the base's row."""

    def __init__(self, run: Run, ranks: Ranks = ALONE) -> None:
        """ranks: those who share what is painted; those beside the first are in `help_paint`."""
        self.run, self.ranks = run, ranks

    @contextmanager
    def base(self, prompts: Sequence[str]) -> Iterator[Session]:
        with adapters.disabled(self.run.family.parts.loaded()), self._session(as_base=True) as session:
            yield session

    @contextmanager
    def adapted(self, prompts: Sequence[str]) -> Iterator[Session]:
        with self._session(as_base=False) as session:
            yield session

    @contextmanager
    def _session(self, as_base: bool) -> Iterator[Session]:
        family, device = self.run.family, self.run.device
        family.parts.to(device.device, "vae")
        try:
            yield _Shared(family, self.run.data.captions, device, self.ranks, as_base)
        finally:
            family.parts.to(CPU, "vae")


class _Shared(Session):
    """The first rank asks; each paints its share."""

    def __init__(self, family: Family, captions: Captions, device: Device, ranks: Ranks, as_base: bool) -> None:
        super().__init__(family, captions, device.device, device.autocast)
        self.ranks, self.as_base = ranks, as_base

    def generate_many(self, requests: Iterable[SampleRequest]) -> Iterator[Picture]:
        if self.ranks.world_size == 1:
            return super().generate_many(requests)
        wanted = list(requests)
        if self.ranks.rank == 0:
            self.ranks.gathered((self.as_base, wanted))
        shares = [iter(drawn) for drawn in self.ranks.gathered([*super().generate_many(self.ranks.share(wanted))])]
        return (next(shares[i % self.ranks.world_size]) for i in range(len(wanted)))


def help_paint(run: Run) -> None:
    """Paint a share of what the first rank asks for, until it is done."""
    live, ranks = Live(run, run.device.ranks), run.device.ranks
    while (asked := ranks.gathered(None)[0]) is not None:
        as_base, wanted = asked
        with live.base(()) if as_base else live.adapted(()) as session:
            session.generate_many(wanted)


def score_candidate(run: Run) -> Events:
    """Evaluate the candidate of this step, and keep its scores beside its file; all ranks paint.

    Raises:
        BaseError: the judge cannot be used.
        RunError: pictures cannot be written. OSError: the scores cannot.
    """
    if not run.folder.writes:
        help_paint(run)
        return
    plan, step, out = run.plan, run.state.step, run.folder.path
    judge = subject.judge_for(plan.recipe.base, plan.recipe.evaluate.judge, plan.data)
    assert judge is not None, "a recipe that asks for scores on the way is refused without"
    file = adapter_path(f"{out}@{step}")
    found = yield from score(subject_of(plan, file, out, judge, None), step, Live(run, run.device.ranks))
    run.device.ranks.gathered(None)
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
