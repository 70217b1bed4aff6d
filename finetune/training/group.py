"""What the ranks of one run decide together: that all begin, and that they are one run."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import NamedTuple

from finetune import errors
from finetune import tensors as weights
from finetune.errors import FinetuneError, Interrupted, RunError, SaidByAnother
from finetune.ranks import Ranks, whole
from finetune.training.begin import Run
from finetune.training.resume import compared

_VERSIONS = ("torch", "diffusers", "transformers", "peft", "accelerate")


class _Failure(NamedTuple):
    """An error on its way to another process."""

    kind: str
    problem: str
    advice: str
    host: str


@contextmanager
def together(ranks: Ranks, waited_for: bool = False) -> Iterator[None]:
    """All ranks get to the end of the block, or none. waited_for: the others may be waiting for this rank's weights
    inside it: one that fails ends at once, which they notice.

    Raises:
        FinetuneError: this rank's own; on the first rank, another's. Ranks beside it are silent about others'.
    """
    try:
        yield
    except Interrupted:  # is not waited for
        raise
    except FinetuneError as e:
        if waited_for:
            raise
        _meet(ranks, _Failure(type(e).__name__, e.problem, e.advice, platform.node()), e)
        raise
    _meet(ranks, None, None)


def _meet(ranks: Ranks, failure: _Failure | None, own: FinetuneError | None) -> None:
    failed = [(rank, one) for rank, one in enumerate(ranks.gathered(failure)) if one is not None]
    if not failed:
        return
    rank, first = failed[0]
    kind: type[FinetuneError] = getattr(errors, first.kind, RunError)
    if ranks.rank:
        raise SaidByAnother(kind.exit_code) from own
    if rank:
        raise kind(f"rank {rank} on {first.host}: {first.problem}", first.advice)


def check_agreement(run: Run) -> None:
    """Is every rank at the same step of the same run, with the same weights?

    Raises:
        RunError: names what differs, and on which rank.
    """
    ranks, plan = run.device.ranks, run.plan
    facts = {
        **compared(plan.recipe),
        **run.folder.identity,
        "plan": f"{plan.steps} steps, {plan.samples} samples",
        "step to go on from": str(run.state.step),
        "weights": weights.fingerprint({str(i): whole(p.detach()) for i, p in enumerate(run.state.parameters)})[:16],
        **{f"version of {name}": version(name) for name in _VERSIONS},
    }
    told = ranks.gathered((platform.node(), facts))
    own = told[0][1]
    for rank, (host, other) in enumerate(told):
        differs = [name for name in {**own, **other} if own.get(name) != other.get(name)]
        if differs:
            if ranks.rank:
                raise SaidByAnother(RunError.exit_code)
            name = differs[0]
            raise RunError(
                f"the ranks are not one run: {name} is {own.get(name, 'absent')} on rank 0 ({told[0][0]}), and "
                f"{other.get(name, 'absent')} on rank {rank} ({host})",
                "give all of them the same recipe, data, base, versions and `out`",
            )
