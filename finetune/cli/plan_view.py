"""A plan as tables, and as JSON."""

import json

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune import recipe
from finetune.planning.footprint import Component, encoder_bytes
from finetune.planning.plan import Plan
from finetune.training.preflight import Measured


def show(plan: Plan, components: list[Component], measured: Measured | None, activations: int | None = None) -> None:
    """Settings with their sources, the arithmetic of the run, buckets, memory."""
    console = Console(highlight=False)
    for table in (_settings(plan), _buckets(plan), _memory(components)):
        console.print(table)
        console.print()
    for line in lines(plan, components, measured, activations):
        console.print(escape(line), soft_wrap=True)


def lines(
    plan: Plan, components: list[Component], measured: Measured | None, activations: int | None = None
) -> list[str]:
    """The sentences under the tables; activations: bytes, None when only a real step can tell."""
    config, visits, facts = plan.recipe, plan.visits(), plan.facts
    images, low, high = plan.train.schedule.images, min(visits.values()), max(visits.values())
    each = f"{low}" if low == high else f"{low} to {high}"
    said = [
        f"base       {facts.described()}; read from {facts.evidence}",
        f"identity   {images} images x {plan.samples / images:g} visits = {plan.samples} samples"
        f" = {_steps(plan)}; each image is seen {each} times",
        *filter(None, [_cycled(plan)]),
    ]
    if plan.held_out:
        said.append(f"held out   {len(plan.held_out)} images, never trained on")
    if plan.prior:
        said.append(f"prior      {plan.prior.schedule.images} class images, as many views as the training images")
    if config.prior.mode == "own_prediction":
        said.append("prior      the base's own prediction, on every training view without the trigger")
    if isinstance(config.adapter, recipe.LowRank):
        alpha, rank = config.adapter.alpha, config.adapter.rank
        said.append(f"scale      alpha / rank = {alpha:g} / {rank} = {alpha / rank:g}")
    state = sum(c.bytes for c in components)
    on_top = "activations come on top" if activations is None else f"about {_size(activations)} of activations on top"
    said.append(f"memory     {_size(state)} of weights, gradients and optimizer state, exactly; {on_top}")
    for encoder, size in encoder_bytes(plan).items():
        said.append(f"captions   {encoder} takes {_size(size)} while it reads them, and is let go before training")
    if measured:
        eta = measured.seconds * plan.steps
        said.append(
            f"measured   {measured.seconds:.2f} s a step at the largest bucket, peak {_size(measured.peak_bytes)};"
            f" about {_time(eta)} for {plan.steps} steps"
        )
    else:
        said.append("           --measure takes one real step: peak memory, and how long the run will take")
    return said


def as_json(
    plan: Plan, components: list[Component], measured: Measured | None, activations: int | None = None
) -> dict[str, object]:
    visits = plan.visits()
    return {
        "settings": {k: {"value": _value(plan, k), "from": plan.sources.get(k, "default")} for k in recipe.keys()},
        "base": plan.facts._asdict(),
        "identity": {
            "images": plan.train.schedule.images, "samples": plan.samples, "steps": plan.steps,
            "global_batch": plan.recipe.train.batch * plan.train.schedule.group,
            "visits_mean": plan.samples / plan.train.schedule.images,
            "visits_least": min(visits.values()), "visits_most": max(visits.values()),
            "epochs": plan.micros / plan.train.schedule.micros_per_epoch,
        },
        "held_out": [p.example.name for p in plan.held_out],
        "prior_images": plan.prior.schedule.images if plan.prior else 0,
        "buckets": [row._asdict() | {"bucket": f"{row.bucket.width}x{row.bucket.height}"} for row in plan.buckets()],
        "components": [c._asdict() for c in components],
        "bytes": sum(c.bytes for c in components),
        "activation_bytes": activations,
        "encoder_bytes": encoder_bytes(plan),
        "measured": None if measured is None else measured._asdict() | {"eta_seconds": measured.seconds * plan.steps},
    }  # fmt: skip


def _settings(plan: Plan) -> Table:
    """Every setting as TOML writes it; what was left as it comes is dim."""
    table = _table("setting", "value", "from")
    table.columns[1].overflow, table.columns[1].no_wrap = "fold", False
    for key in recipe.keys():
        found = _value(plan, key)
        source = plan.sources.get(key, "default")
        if found is not None:
            table.add_row(key, escape(_toml(found)), source, style="" if source != "default" else "dim")
    return table


def _buckets(plan: Plan) -> Table:
    table = _table("bucket, px", "images", "batches an epoch", "visits an epoch", "worst crop loss")
    for row in plan.buckets():
        table.add_row(
            f"{row.bucket.width} x {row.bucket.height}", str(row.images), str(row.batches), f"{row.weight:.2f}",
            f"{row.worst_crop_loss:.0%}", style="yellow" if row.weight > 1.5 or row.worst_crop_loss > 0.25 else "",
        )  # fmt: skip
    return table


def _memory(components: list[Component]) -> Table:
    averaged = ["running mean"] if any(c.mean_bytes for c in components) else []
    table = _table(
        "component", "parameters", "trained", "modules", "weights", "gradients", "optimizer state", *averaged
    )
    for c in components:
        table.add_row(
            c.name, f"{c.parameters:,}", f"{c.trainable:,}", str(c.modules or "-"), _size(c.weight_bytes),
            _size(c.gradient_bytes), _size(c.optimizer_bytes),
            *[_size(c.mean_bytes) for _ in averaged],
        )  # fmt: skip
    return table


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, no_wrap=True, justify="left" if name in ("value", "from") else "right")
    return table


def _toml(found: object) -> str:
    if isinstance(found, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in found.items()) + "}"
    return json.dumps(found, ensure_ascii=False)


def _cycled(plan: Plan) -> str:
    """Which buckets show some images twice an epoch, "" when none does."""
    filled = [row for row in plan.buckets() if row.weight > 1]
    if not filled:
        return ""
    names = ", ".join(f"{row.bucket.width} x {row.bucket.height}" for row in filled[:4])
    more = f" and {len(filled) - 4} more" if len(filled) > 4 else ""
    return f"filling    {names}{more}: no whole number of batches; filled up in turn with images of the same bucket"


def _steps(plan: Plan) -> str:
    train, world = plan.recipe.train, plan.train.schedule.world
    batch = train.batch * plan.train.schedule.group
    whole, rest = divmod(plan.samples, batch)
    factors = [f"batch {train.batch}"]
    factors += [f"{train.accumulate} accumulated"] if train.accumulate > 1 else []
    factors += [f"{world} ranks"] if world > 1 else []
    product = f" ({' x '.join(factors)})" if len(factors) > 1 else ""
    return f"{whole} steps x {batch}{product}" + (f" + 1 step of {rest}" if rest else "")


def _value(plan: Plan, key: str) -> object:
    found = recipe.value(plan.recipe, key)
    if isinstance(found, tuple):
        return list(found)
    return found if found is None or isinstance(found, int | float | str | bool | dict) else str(found)


def _size(n: int) -> str:
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB" if n >= 2**20 else f"{n / 2**10:.1f} KiB"


def _time(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds > 5400
        else f"{seconds / 60:.0f} min"
        if seconds > 90
        else f"{seconds:.0f} s"
    )
