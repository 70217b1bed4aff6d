"""What trackers are told: numbers, pictures and sentences at a step, out of a run's events."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from finetune.events import Evaluated, Event, Sampled, Scored, Stepped, Validated

_NONE: Mapping[str, str] = MappingProxyType({})


class Reading(NamedTuple):
    """At a step; each under the name of its curve or picture."""

    step: int
    values: Mapping[str, float]
    pictures: Mapping[str, Path] = MappingProxyType({})
    texts: Mapping[str, str] = _NONE


class Readings:
    """Events in, readings out. images: how many one step looks at, over all GPUs."""

    def __init__(self, images: float = 0) -> None:
        self.images, self._step = images, 0

    def __call__(self, event: Event) -> Reading | None:
        """None: trackers are not told of it."""
        match event:
            case Stepped():
                self._step = event.step
                return Reading(event.step, self._of_step(event))
            case Validated(step, loss, bands):
                levels = {f"loss/held_out_at_{level}": value for level, value in bands.items()}
                return Reading(step, {"loss/held_out": loss, **levels})
            case Scored(step, seen, scores):
                return Reading(step, {**_share(seen), **{f"scores/{name}": one.value for name, one in scores.items()}})
            case Sampled(step, _, sheet) if sheet:
                return Reading(step, {}, {"samples": sheet})
            case Evaluated():
                return self._verdict(event)
        return None

    def _of_step(self, event: Stepped) -> dict[str, float]:
        values = {"loss/train": event.loss, "gradient_norm": event.grad_norm}
        if event.prior_loss is not None:
            values["loss/prior"] = event.prior_loss
        values |= {f"learning_rate/{component}": rate for component, rate in event.rates.items()}
        if event.seconds:
            values["speed/steps_per_second"] = 1 / event.seconds
            values |= {"speed/images_per_second": self.images / event.seconds} if self.images else {}
        return values | ({"memory/peak_gib": event.peak_bytes / 2**30} if event.peak_bytes else {})

    def _verdict(self, event: Evaluated) -> Reading:
        said = " ".join([event.text, *event.reasons])
        values = {
            "verdict/learnt": float(event.learnt),
            **{f"verdict/{k}": one.value for k, one in event.scores.items()},
        }
        return Reading(self._step, values, {"evaluation": event.sheet} if event.sheet else {}, {"verdict": said})


def _share(seen: str) -> dict[str, float]:
    """Of "9/10"."""
    hit, _, count = seen.partition("/")
    return {"scores/seen": int(hit) / int(count)} if hit.isdecimal() and count.isdecimal() and int(count) else {}
