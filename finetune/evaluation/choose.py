"""Which of a run's candidates is shipped, and when to stop: pure functions of the scores so far."""

from collections.abc import Sequence
from typing import NamedTuple

from finetune.events import Scored


class Limits(NamedTuple):
    """What a candidate may cost. A score that was not measured breaks no limit."""

    max_drift: float
    min_prompt: float
    max_memorisation: float

    def broken(self, candidate: Scored) -> list[str]:
        """A sentence for each limit that it breaks."""
        drift, prompt, copies = (candidate.scores.get(name) for name in ("drift", "prompt", "memorisation"))
        found = []
        if drift is not None and drift.value > self.max_drift:
            found.append(f"drift {drift.value:.2f}, above {self.max_drift:g}")
        if prompt is not None and prompt.value < self.min_prompt:
            found.append(f"prompt {prompt.value:.2f}, below {self.min_prompt:g}")
        if copies is not None and copies.value > self.max_memorisation:
            found.append(f"memorisation {copies.value:.2f}, above {self.max_memorisation:g}")
        return found


def best(candidates: Sequence[Scored], limits: Limits) -> Scored:
    """The highest likeness among those inside the limits, the earliest of equals; if none is inside, the one that
    breaks the fewest, and of these the highest likeness."""
    return min(candidates, key=lambda one: (len(limits.broken(one)), -one.scores["likeness"].value, one.step))


def because(chosen: Scored, some: Sequence[Scored], limits: Limits) -> str:
    """Why that one of some is the best, in words."""
    told = f"likeness {chosen.scores['likeness'].value:.2f}, seen in {chosen.seen}"
    over = limits.broken(chosen)
    if over:
        return f"{told}; no candidate is inside the limits: {', '.join(over)}"
    return f"{told}: the most of {len(some)} candidates" + (
        "" if all(not limits.broken(one) for one in some) else " inside the limits"
    )


def reason_to_stop(candidates: Sequence[Scored], patience: int) -> str:
    """Why more steps are not worth their time: for `patience` evaluations the likeness has not risen by more than half
    of its interval above the best before them, while drift or memorisation rises. "" while they are."""
    if len(candidates) <= patience:
        return ""
    before, since = candidates[:-patience], candidates[-patience:]
    top = max(before, key=lambda one: one.scores["likeness"].value)
    value, low, high = top.scores["likeness"]
    if max(one.scores["likeness"].value for one in since) > value + (high - low) / 2:
        return ""
    rising = [name for name in ("drift", "memorisation") if name in top.scores and _risen(name, top, since[-1])]
    if not rising:
        return ""
    return f"likeness has not risen since step {top.step} ({value:.2f}), while {' and '.join(rising)} rises"


def _risen(name: str, before: Scored, now: Scored) -> bool:
    return now.scores[name].value > before.scores[name].value
