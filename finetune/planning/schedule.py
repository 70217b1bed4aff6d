"""Which samples form step k, on which rank, in which bucket: a function of (seed, dataset, k).

An epoch shows every image at least once. A bucket whose size is no multiple of the batch is filled up by cycling
inside the bucket; the fillers rotate, so that the surplus is shared evenly over the epochs. Nothing is dropped.
A sample that is repeated has so many places in its bucket, and each of them is a visit of its own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from finetune.diffusion.chance import permutation


class Visit(NamedTuple):
    """The visit-th (from 0) look at a sample."""

    sample: int
    visit: int


class Micro(NamedTuple):
    """The views of one forward pass; all of one bucket."""

    bucket: int
    views: tuple[Visit, ...]


@dataclass(frozen=True)
class Schedule:
    buckets: tuple[tuple[int, ...], ...]
    """sample indices by bucket; none empty"""
    batch: int
    accumulate: int
    seed: int
    world_size: int = 1
    repeats: tuple[int, ...] = ()
    """how often an epoch shows each sample; empty: each once"""
    _orders: dict[tuple[int, ...], list[int]] = field(default_factory=dict, compare=False, repr=False)
    _turns: dict[int, list[int]] = field(default_factory=dict, compare=False, repr=False)
    _numbers: dict[tuple[int, int], list[int]] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def slots(self) -> tuple[tuple[int, ...], ...]:
        """The buckets, each sample in them as often as an epoch shows it."""
        if not self.repeats:
            return self.buckets
        return tuple(tuple(s for s in samples for _ in range(self.repeats[s])) for samples in self.buckets)

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches an optimizer step, over all ranks."""
        return self.accumulate * self.world_size

    @property
    def samples_per_step(self) -> int:
        return self.batch * self.micro_batches_per_step

    @property
    def micros_per_epoch(self) -> int:
        return sum(-(-len(samples) // self.batch) for samples in self.slots)

    @property
    def images(self) -> int:
        return sum(map(len, self.buckets))

    @property
    def images_per_epoch(self) -> int:
        """With their repeats, and without those that complete a batch."""
        return sum(map(len, self.slots))

    def steps_for(self, epochs: int) -> int:
        """Optimizer steps of so many epochs; the last may have fewer micro-batches."""
        return -(-epochs * self.micros_per_epoch // self.micro_batches_per_step)

    def micro_batch(self, m: int) -> Micro:
        """The m-th micro-batch since the beginning, from 0."""
        epoch, at = divmod(m, self.micros_per_epoch)
        at = self._order(self.micros_per_epoch, epoch)[at]
        for bucket, samples in enumerate(self.slots):
            batches = -(-len(samples) // self.batch)
            if at < batches:
                slots = range(at * self.batch, (at + 1) * self.batch)
                return Micro(bucket, tuple(self._view(bucket, epoch, slot) for slot in slots))
            at -= batches
        raise AssertionError("the order counts more micro-batches than the buckets hold")

    def step(self, k: int, rank: int = 0, total: int | None = None) -> list[Micro]:
        """This rank's micro-batches of step k, from 0; `total` ends the run inside the last group."""
        first = k * self.micro_batches_per_step
        last = first + self.micro_batches_per_step if total is None else min(first + self.micro_batches_per_step, total)
        return [self.micro_batch(m) for m in range(first + rank, last, self.world_size)]

    def visits(self, micros: int) -> Counter[int]:
        """sample -> how often it is seen in the first so many micro-batches."""
        epochs, rest = divmod(micros, self.micros_per_epoch)
        seen: Counter[int] = Counter()
        for bucket, samples in enumerate(self.slots):
            n = len(samples)
            fillers = epochs * self._extra(bucket)
            for at, sample in enumerate(self._rotation(bucket)):
                seen[samples[sample]] += epochs + (fillers - at + n - 1) // n
        for m in range(epochs * self.micros_per_epoch, epochs * self.micros_per_epoch + rest):
            seen.update(view.sample for view in self.micro_batch(m).views)
        return seen

    def _view(self, bucket: int, epoch: int, slot: int) -> Visit:
        samples, extra = self.slots[bucket], self._extra(bucket)
        n = len(samples)
        if n > len(self.buckets[bucket]):
            return Visit(samples[self._chosen(bucket, epoch, slot)], self._numbered(bucket, epoch)[slot])
        if not extra:
            return Visit(samples[self._order(n, bucket, epoch)[slot]], epoch)
        if slot < n:
            chosen = self._order(n, bucket, epoch)[slot]
            fillers_before = (epoch * extra - self._turn(bucket)[chosen] + n - 1) // n
            return Visit(samples[chosen], epoch + fillers_before)
        turn, at = divmod(epoch * extra + slot - n, n)
        return Visit(samples[self._rotation(bucket)[at]], epoch + 1 + turn)

    def _chosen(self, bucket: int, epoch: int, slot: int) -> int:
        """Which of a bucket's places is shown."""
        n = len(self.slots[bucket])
        if slot < n:
            return self._order(n, bucket, epoch)[slot]
        return self._rotation(bucket)[(epoch * self._extra(bucket) + slot - n) % n]

    def _numbered(self, bucket: int, epoch: int) -> list[int]:
        """By slot, how often its sample was seen before: a sample that is repeated is counted over all its places."""
        found = self._numbers.get((bucket, epoch))
        if found is None:
            if len(self._numbers) > 2 * len(self.buckets):
                self._numbers.clear()
            samples, extra, turns = self.slots[bucket], self._extra(bucket), self._turn(bucket)
            n, seen = len(samples), Counter[int]()
            for at, sample in enumerate(samples):
                seen[sample] += epoch + (epoch * extra - turns[at] + n - 1) // n
            found = self._numbers[bucket, epoch] = []
            for slot in range(n + extra):
                sample = samples[self._chosen(bucket, epoch, slot)]
                found.append(seen[sample])
                seen[sample] += 1
        return found

    def _extra(self, bucket: int) -> int:
        return -len(self.slots[bucket]) % self.batch

    def _rotation(self, bucket: int) -> list[int]:
        return self._order(len(self.slots[bucket]), bucket, -1)

    def _turn(self, bucket: int) -> list[int]:
        """When each sample of a bucket is its filler: the inverse of the rotation, kept as looking it up takes long."""
        found = self._turns.get(bucket)
        if found is None:
            rotation = self._rotation(bucket)
            found = self._turns[bucket] = [0] * len(rotation)
            for at, sample in enumerate(rotation):
                found[sample] = at
        return found

    def _order(self, n: int, *identity: int) -> list[int]:
        found = self._orders.get((n, *identity))
        if found is None:
            if len(self._orders) > 4 * len(self.buckets) + 8:
                self._orders.clear()
            found = self._orders[n, *identity] = permutation(n, self.seed, "order", *identity)
        return found


def batch_in_words(schedule: Schedule) -> str:
    """How many pictures an optimizer step sees, such as "2 ranks x batch 1 x 3 = 6 pictures a step"."""
    ranks = f"{schedule.world_size} ranks x " if schedule.world_size > 1 else ""
    accumulated = f" x {schedule.accumulate}" if schedule.accumulate > 1 else ""
    return f"{ranks}batch {schedule.batch}{accumulated} = {schedule.samples_per_step} pictures a step"


def by_bucket(buckets: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """bucket number of each sample -> sample indices by bucket, in order of bucket."""
    found: dict[int, list[int]] = {}
    for sample, bucket in enumerate(buckets):
        found.setdefault(bucket, []).append(sample)
    return tuple(tuple(found[bucket]) for bucket in sorted(found))
