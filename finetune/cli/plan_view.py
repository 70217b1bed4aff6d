"""A plan as answers, tables and JSON. Imports torch."""

import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from finetune import recipe
from finetune.data.text.caption_edits import TagEdits
from finetune.doctor import device_memory, host_memory
from finetune.planning.candidates import candidate_bytes, candidate_count
from finetune.planning.footprint import ComponentFootprint, encoder_bytes
from finetune.planning.host import HostNeeds, host_needs
from finetune.planning.leftovers import leftovers
from finetune.planning.masks import masked_count, masks_answer
from finetune.planning.plan import Plan
from finetune.planning.room import cache_folder, disk_bytes, free_disk
from finetune.planning.spread import gathered_bytes, held_bytes, is_spread
from finetune.reporting.markup import escape

if TYPE_CHECKING:
    from finetune.training.preflight import Measured

NAMED_WEIGHTS = 4
"""in the line about the length"""


def show(
    plan: Plan, components: list[ComponentFootprint], measured: "Measured | None", activations: int | None = None
) -> None:
    """Answers first: length, time, memory, what is trained, whether it fits; then buckets, components and settings."""
    console = Console(highlight=False, emoji=False)
    for label, text in answers(plan, components, measured, activations).items():
        console.print(_answer(label, text))
    for table in (_buckets(plan), _memory(components), _settings(plan)):
        console.print()
        console.print(table)


def answers(
    plan: Plan, components: list[ComponentFootprint], measured: "Measured | None", activations: int | None = None
) -> dict[str, str]:
    """Label -> sentence; activations: bytes, None when only a real step can tell."""
    config, facts = plan.recipe, plan.facts
    told = {"length": _length(plan), "time": _time_needed(plan, measured)}
    told["memory"] = _memory_needed(plan, components, measured, activations)
    told["trains"] = _trained(plan, components)
    if plan.prior:
        told["prior"] = f"{plan.prior.schedule.images} class images, shown as often as the training images"
    if config.prior.mode == "own_prediction":
        told["prior"] = "every training image also without the trigger, where the base's own prediction is kept"
    if plan.held_out:
        told["held out"] = f"{len(plan.held_out)} images are never trained on and measure the loss{_split(plan)}"
    if masked := masks_answer(plan):
        told["masks"] = masked
    if padded := _padded(plan):
        told["padded"] = padded
    told["files"] = _files(plan, components)
    needed = needed_bytes(plan, components, measured, activations)
    host = host_needs(plan, components, needed)
    if said := _captions(plan, host):
        told["captions"] = said
    told["host"] = _host(host)
    told["disk"] = _disk(plan, disk_bytes(plan, components), host)
    if rest := leftovers(plan):
        told["example"] = "; ".join(rest)
    told["prompts"] = "\n".join(config.sample.prompts)
    told["base"] = f"{config.base}: {facts.described()}; read from {facts.evidence}"
    told["verdict"] = _verdict(needed, *device_memory())
    return told


def needed_bytes(
    plan: Plan, components: list[ComponentFootprint], measured: "Measured | None", activations: int | None
) -> int:  # fmt: skip
    """Of the device's memory at the peak: in training, or while a text encoder reads captions."""
    training = held_bytes(plan, components) + (activations or 0)
    return max(
        training, gathered_bytes(components), measured.peak_bytes if measured else 0, *encoder_bytes(plan).values(), 0
    )


def _length(plan: Plan) -> str:
    images, visits = plan.train.schedule.images, plan.visits()
    low, high = min(visits.values()), max(visits.values())
    each = f"{low}" if low == high else f"{low} to {high}"
    told = f"{_steps(plan)} = {plan.samples} samples; each of the {images} images is seen {each} times"
    return told + _weights(plan)


def _weights(plan: Plan) -> str:
    """How often an epoch shows pictures of each weight."""
    rows = plan.train.weights
    if not rows:
        return ""
    named = [f"{_images(r.images)} of weight {r.weight:g}: {_times(r.repeats)}" for r in rows[:NAMED_WEIGHTS]]
    more = [f"{len(rows) - NAMED_WEIGHTS} more weights"] if len(rows) > NAMED_WEIGHTS else []
    return f"; an epoch shows {', '.join([*named, *more])}"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{count} times"


def _time_needed(plan: Plan, measured: "Measured | None") -> str:
    if measured is None:
        return "not known yet; --measure takes one real step and tells the time and the peak memory"
    each = f"{plan.steps} steps of {measured.seconds:.2f} s at the largest size"
    return f"about {_time(measured.seconds * plan.steps)}: {each}"


def _memory_needed(
    plan: Plan, components: list[ComponentFootprint], measured: "Measured | None", activations: int | None
) -> str:  # fmt: skip
    state, world = held_bytes(plan, components), plan.train.schedule.world_size
    spread = f", which are spread over {world} GPUs" if is_spread(plan, world) else ""
    parts = f"{_size(state)} for weights, gradients and optimizer state{spread}"
    more = "activations come on top" if activations is None else f"about {_size(activations)} for activations"
    told = f"about {_size(state + (activations or 0))}: {parts}, {more}"
    if measured:
        told += f"; measured peak {_size(measured.peak_bytes)}"
    for encoder, size in encoder_bytes(plan).items():
        told += f"; {encoder} takes {_size(size)} while it reads the captions and is unloaded before training"
    return told


def _trained(plan: Plan, components: list[ComponentFootprint]) -> str:
    config = plan.recipe.adapter
    trained = [c for c in components if c.trainable]
    names = ", ".join(f"{c.name} ({c.modules} modules)" if c.modules else c.name for c in trained)
    count = sum(c.trainable for c in trained)
    if not isinstance(config, recipe.LowRank):
        return f"all weights of {names}: {count:,} parameters"
    scale = f"alpha / rank = {config.alpha:g} / {config.rank} = {config.alpha / config.rank:g}"
    return f"{_METHODS.get(config.method, config.method)} in {names}: {count:,} parameters; scaled by {scale}"


def _captions(plan: Plan, host: HostNeeds) -> str:
    """How captions vary, and what that costs; empty where each picture has one."""
    edits, trained = TagEdits.of(plan.recipe.data), [placed.example for placed in plan.train.placed]
    several = sum(len(e.captions) > 1 for e in trained)
    said = [f"{several} of {len(trained)} images have several, shown in turn"] if several else []
    if edits.active:
        how = ["tags shuffled"] * edits.shuffle + [f"{edits.dropout:.0%} of tags left out"] * (edits.dropout > 0)
        said.append(f"{' and '.join(how)}, in at most {edits.variants} texts of each image")
    if not said:
        return ""
    texts, size = host.captions, host.cache.texts
    said.append(f"{texts:,} different texts are encoded, {_size(size)} of the cache" if texts else
                "text encoders are trained, and read them anew each time")  # fmt: skip
    return "; ".join(said)


def _files(plan: Plan, components: list[ComponentFootprint]) -> str:
    """Which adapter files the run leaves."""
    if not isinstance(plan.recipe.adapter, recipe.LowRank):
        return "the pipeline at the end; no step in between leaves one, as each would be a whole base"
    count, every = candidate_count(plan), plan.recipe.sample.every
    if not count:
        return "the adapter at the end; sample.every = 100 would keep that of every 100th step as well, as RUN@100"
    steps = f"of {count} sampled step{'s' if count > 1 else ''} (RUN@{every})"
    return f"the adapter at the end, and that {steps}, each at most {_size(candidate_bytes(plan, components))}"


_METHODS = {"lora": "a LoRA", "dora": "a DoRA"}


def _verdict(needed: int, device: str, free: int) -> str:
    room = f"{_size(free)} free on {device}"
    if needed > free:
        return f"does not fit: about {_size(needed)} needed, {room}; lower data.resolution or train.batch first"
    return f"fits: about {_size(needed)} needed, {room}"


def _host(host: HostNeeds) -> str:
    free = host_memory()
    said = f"about {_size(host.memory)} of this computer's memory for each process"
    held = f"{_size(host.cache.memory)} of it for encoded images and captions, however many there are on disk"
    short = "; it does not fit: close other programs" if host.memory > free else ""
    return f"{said}, {held}; {_size(free)} free{short}"


def _disk(plan: Plan, run: int, host: HostNeeds) -> str:
    root = cache_folder(plan)
    cache, free = host.cache.disk, free_disk(root)
    said = (
        f"at most {_size(run)} in the run's folder, for checkpoints, files and pictures; about {_size(cache)} in the "
    )
    said += f"cache {root}, for encoded images and captions, as far as they are not there yet: {_size(free)} free"
    return f"{said}; they do not fit: name another folder, data.cache" if cache > free else said


def _answer(label: str, text: str) -> Table:
    """A label with its sentence beside it, wrapped in its own column."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=8, style="bold")
    table.add_column(overflow="fold")
    table.add_row(label, escape(text))
    return table


def as_json(
    plan: Plan, components: list[ComponentFootprint], measured: "Measured | None", activations: int | None = None
) -> dict[str, object]:
    visits = plan.visits()
    needed = needed_bytes(plan, components, measured, activations)
    host = host_needs(plan, components, needed)
    return {
        "settings": {k: {"value": _value(plan, k), "from": plan.sources.get(k, "default")} for k in recipe.keys()},
        "base": plan.facts._asdict(),
        "identity": {
            "images": plan.train.schedule.images, "samples": plan.samples, "steps": plan.steps,
            "global_batch": plan.recipe.train.batch * plan.train.schedule.micro_batches_per_step,
            "visits_mean": plan.samples / plan.train.schedule.images,
            "visits_least": min(visits.values()), "visits_most": max(visits.values()),
            "images_per_epoch": plan.train.schedule.images_per_epoch,
            "epochs": plan.micros / plan.train.schedule.micros_per_epoch,
        },
        "weights": [share._asdict() for share in plan.train.weights],
        "notices": list(plan.notices),
        "masked": masked_count(plan),
        "held_out": [p.example.name for p in plan.held_out],
        "prior_images": plan.prior.schedule.images if plan.prior else 0,
        "buckets": [row._asdict() | {"bucket": f"{row.bucket.width}x{row.bucket.height}"} for row in plan.buckets()],
        "components": [c._asdict() for c in components],
        "candidates": {"files": candidate_count(plan), "bytes": candidate_bytes(plan, components)},
        "disk_bytes": disk_bytes(plan, components),
        "cache": host.cache._asdict() | {
            "root": str(cache_folder(plan)), "disk": host.cache.disk, "free_bytes": free_disk(cache_folder(plan))
        },
        "captions": {
            "texts": host.captions, "bytes": host.cache.texts,
            "several": sum(len(p.example.captions) > 1 for p in plan.train.placed),
        },
        "host": {"bytes": host.memory, "free_bytes": host_memory()},
        "example": leftovers(plan),
        "bytes": sum(c.bytes for c in components),
        "spread": is_spread(plan, plan.train.schedule.world_size),
        "activation_bytes": activations,
        "needed_bytes": needed,
        "device": dict(zip(("name", "free_bytes"), device_memory(), strict=True)),
        "encoder_bytes": encoder_bytes(plan),
        "measured": None if measured is None else measured._asdict() | {"eta_seconds": measured.seconds * plan.steps},
    }  # fmt: skip


def _settings(plan: Plan) -> Table:
    """Every setting as TOML writes it; defaults are dim."""
    table = _table("setting", "value", "from")
    table.columns[1].overflow, table.columns[1].no_wrap = "fold", False
    for key in recipe.keys():
        value, source = _value(plan, key), plan.sources.get(key, "default")
        if value is not None:
            table.add_row(key, escape(_toml(value)), source, style="" if source != "default" else "dim")
    return table


def _buckets(plan: Plan) -> Table:
    table = _table("size in px", "images", "batches/epoch", "views/epoch", "cropped at most")
    for row in plan.buckets():
        table.add_row(
            f"{row.bucket.width} x {row.bucket.height}", str(row.images), str(row.batches), f"{row.weight:.2f}",
            f"{row.worst_crop_loss:.0%}", style="yellow" if row.surplus > 1.5 or row.worst_crop_loss > 0.25 else "",
        )  # fmt: skip
    return table


def _memory(components: list[ComponentFootprint]) -> Table:
    ema = ["EMA"] if any(c.mean_bytes for c in components) else []
    table = _table("component", "parameters", "trained", "weights", "gradients", "optimizer", *ema)
    for c in components:
        table.add_row(
            c.name, _count(c.parameters), _count(c.trainable), _size(c.weight_bytes), _size(c.gradient_bytes),
            _size(c.optimizer_bytes), *[_size(c.mean_bytes) for _ in ema],
        )  # fmt: skip
    return table


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, no_wrap=True, justify="left" if name in ("value", "from") else "right")
    return table


def _count(n: int) -> str:
    return f"{n / 1e9:.2f} B" if n >= 10**9 else f"{n / 1e6:.2f} M" if n >= 10**6 else f"{n:,}"


def _toml(found: object) -> str:
    if isinstance(found, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in found.items()) + "}"
    return json.dumps(found, ensure_ascii=False)


def _split(plan: Plan) -> str:
    """Which of the images that are held out the dataset names itself."""
    declared = sum(p.example.attributes.held_out for p in plan.held_out)
    drawn = len(plan.held_out) - declared
    if not declared:
        return ""
    return f" (the dataset's own{f', and {drawn} by chance to reach validation.count' if drawn else ''})"


def _padded(plan: Plan) -> str:
    """Which buckets show some images twice an epoch; empty when none does."""
    filled = [row for row in plan.buckets() if row.surplus > 1]
    if not filled:
        return ""
    names = ", ".join(f"{row.bucket.width} x {row.bucket.height}" for row in filled[:4])
    more = f" and {len(filled) - 4} more" if len(filled) > 4 else ""
    return f"{names}{more}: the last batch is completed with repeated images of the same size"


def _steps(plan: Plan) -> str:
    train, world = plan.recipe.train, plan.train.schedule.world_size
    batch = train.batch * plan.train.schedule.micro_batches_per_step
    whole, rest = divmod(plan.samples, batch)
    factors = [f"batch {train.batch}"]
    factors += [f"{train.accumulate} accumulated"] if train.accumulate > 1 else []
    factors += [f"{world} ranks"] if world > 1 else []
    product = f" ({' x '.join(factors)})" if len(factors) > 1 else ""
    return f"{whole} steps x {batch} images{product}" + (f" + 1 step of {rest}" if rest else "")


def _value(plan: Plan, key: str) -> object:
    found = recipe.value(plan.recipe, key)
    if isinstance(found, tuple):
        return list(found)
    return found if found is None or isinstance(found, int | float | str | bool | dict) else str(found)


def _size(n: int) -> str:
    if n >= 100 * 2**30:
        return f"{n / 2**30:.1f} GiB"
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB" if n >= 2**20 else f"{n / 2**10:.1f} KiB"


def _time(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds > 5400
        else f"{seconds / 60:.0f} min"
        if seconds > 90
        else f"{seconds:.0f} s"
    )
