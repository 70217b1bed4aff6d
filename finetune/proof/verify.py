"""Does an adapter file do what it should? Read strictly, then loaded the way users do, into a fresh base."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from finetune import families, reading
from finetune import resources as shipped
from finetune import tensors as weights
from finetune.adapters.change import AdapterState, Change, target_shapes
from finetune.choices import ReaderName
from finetune.families.base import BaseInfo, Family, adaptable
from finetune.families.quantised import dense
from finetune.files import layouts
from finetune.machine import DTYPES
from finetune.proof import outputs, stock
from finetune.proof.applied import TOLERANCE, applied, base_weight, delta_of, difference, weight_of
from finetune.proof.labels import made_for_another
from finetune.proof.outputs import Reference
from finetune.proof.verdicts import ReaderVerdict, judge_readers
from finetune.shortage import CHECKING, out_of_memory
from finetune.unchanged import Stamps

LARGE = 4_000_000_000
"""weights from which a base is opened in bf16, where outputs with the change merged in could not be compared (T17)"""
MOST_CHANGE = 100.0
"""of weights by an adapter, in units of their size: trained ones have up to 0.3"""


@dataclass(frozen=True)
class Effect:
    """How much one component changes."""

    component: str
    modules: int
    weight: float
    """|dW| / |W| over the weights that change"""
    output: float | None
    """the same of the component's output on a fixed input; the denoiser's includes the text encoders' change; None: not
    measured"""


@dataclass(frozen=True)
class Report:
    file: str
    base: str
    layout: str
    ok: bool
    expected: int
    """modules"""
    hit: int
    missed: tuple[str, ...]
    unused: tuple[str, ...]
    """keys"""
    ranks: dict[str, int]
    """rank -> modules"""
    alphas: dict[str, int]
    """alpha -> modules; the scale is alpha / rank"""
    effects: tuple[Effect, ...]
    stock: float | None
    """worst module's difference between what stock diffusers applies and what the file says; None: not loaded"""
    stock_output: float | None
    """difference of the outputs, stock diffusers' and the reference's, relative to their change"""
    live: float | None
    """worst module's difference to the live model; None: none was given"""
    outputs: float | None
    """how far the outputs are from the trained model's, by our reader or stock diffusers, as a share of what training
    changed in them; None: not given"""
    problems: tuple[str, ...]
    findings: tuple[str, ...]
    """worth knowing, and no failure"""
    readers: dict[str, ReaderVerdict]
    """of each program that reads this base's adapters"""
    readable: bool
    """whole, by our reader"""
    repairable: bool
    """`export` can write it so that more programs read it"""


@out_of_memory("while the file is held against the base", CHECKING)
def verify(
    file: Path,
    base: str,
    live: AdapterState | None = None,
    base_bits: int | None = None,
    trained: Reference | None = None,
    readers: Collection[ReaderName] = (),
) -> Report:
    """`live`: what the file should hold, module by module. base_bits: open the base's denoiser in so many bits (4), and
    prove the file as in a base that is large. trained: what the model that was trained computes; the file, in a fresh
    base that is held alike, must compute the same. readers: programs that must apply it as it says; none: those that
    its names are meant for.

    Raises:
        BaseError: the file or the base cannot be read at all, or the file was changed meanwhile.
    """
    facts = families.detect(base)
    places = adaptable_shapes(base, facts)
    large = is_large(places) or base_bits is not None
    family = _open(base, facts, large, base_bits, trained)
    stamps = Stamps.of(layouts.adapter_files(file))
    adapter = layouts.read_adapter(file, places, family.name)
    should = set(live) if live is not None else _listed(adapter)
    missed = tuple(sorted(should - adapter.modules.keys()))
    dtype = _file_dtype(file)
    foreign = made_for_another(adapter, facts)
    problems = [*([foreign] if foreign else []), *adapter.problems, *adapter.warnings]
    problems += [f"{name}: expected, and not in the file" for name in missed]
    problems += _hash_problems(file, adapter.metadata)
    mismatched = shape_mismatches(adapter.modules, places)
    problems += mismatched
    fitting = {n: change for n, change in adapter.modules.items() if n in places and _fits(change, places[n])}
    problems += [] if adapter.modules else ["no change in it that this base has a place for"]
    problems += _surplus(fitting, should)
    worst_live, differing = _to_live(family, fitting, live or {}, dtype)
    problems += differing
    held = _Held(file, dtype, fitting, live, trained)
    measured = _measure(family, held, large) if fitting and not foreign else _Measured(())
    problems += measured.problems
    stamps.check()  # it was opened by our reader, hashed, and opened by stock diffusers
    verdicts = judge_readers(family, adapter, measured.stock_problems if measured.asked else None, readers)
    problems += [one.why for one in verdicts.values() if one.asked and not one.right]
    readable = not (adapter.problems or mismatched or foreign or layouts.ASSUMED in adapter.warnings)
    return Report(
        file=file.name,
        base=shipped.public_name(base),
        layout=adapter.layout,
        ok=not problems,
        expected=len(should),
        hit=len(should) - len(missed),
        missed=missed,
        unused=adapter.unused,
        ranks=_counted(change.rank for change in adapter.modules.values()),
        alphas=_counted(round(c.scale * c.rank, 6) for c in adapter.modules.values()),
        effects=measured.effects,
        stock=measured.stock,
        stock_output=measured.stock_output,
        live=worst_live if live is not None else None,
        outputs=measured.outputs,
        problems=tuple(problems),
        findings=_findings(adapter, verdicts, measured),
        readers=verdicts,
        readable=readable,
        repairable=readable and bool(fitting) and layouts.is_repairable(adapter, family.name),
    )


def _listed(adapter: layouts.AdapterFile) -> set[str]:
    """The modules that a file says it holds; of one that does not say, those that it holds."""
    told = layouts.expected(adapter.metadata)
    return {name for name, (rank, _) in told.items() if rank} or set(adapter.modules)


def adaptable_shapes(base: str, facts: BaseInfo) -> dict[str, tuple[int, ...]]:
    """canonical name -> weight shape of all that an adapter file may change."""
    kind = families.family_class(facts.family)
    return target_shapes(kind.on_meta(families.locate(base), facts, adaptable(kind)))


def is_large(places: Mapping[str, tuple[int, ...]]) -> bool:
    """Of a base that can be changed at these places, name -> weight shape."""
    return sum(math.prod(shape) for shape in places.values()) > LARGE


def shape_mismatches(modules: AdapterState, places: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What does not have the base's shapes."""
    wrong = [n for n, change in sorted(modules.items()) if n in places and not _fits(change, places[n])]
    if not wrong:
        return []
    shape = modules[wrong[0]].shape
    return [
        f"the adapter was made for another base: {len(wrong)} of {len(modules)} modules have other shapes; "
        f"{wrong[0]} is {shape} in the file, {places[wrong[0]]} in the base"
    ]


def _open(base: str, facts: BaseInfo, large: bool, bits: int | None, trained: Reference | None) -> Family:
    """A fresh base: large ones in bf16; others in float32, rounded before as the trained model's was."""
    if large or trained is None:
        return families.load(base, torch.bfloat16 if large else torch.float32, facts, base_bits=bits)
    family = families.load(base, trained.precision, facts, base_bits=trained.bits)
    outputs.in_float32(family)
    return family


class _Held(NamedTuple):
    """A file, and what it is held against."""

    file: Path
    dtype: torch.dtype
    modules: AdapterState
    """that fit the base"""
    live: AdapterState | None
    trained: Reference | None


class _Measured(NamedTuple):
    effects: tuple[Effect, ...]
    stock: float | None = None
    stock_output: float | None = None
    outputs: float | None = None
    problems: tuple[str, ...] = ()
    stock_problems: tuple[str, ...] = ()
    asked: bool = False
    """stock diffusers was given the file"""
    warned: tuple[str, ...] = ()


def _findings(
    adapter: layouts.AdapterFile, verdicts: Mapping[str, ReaderVerdict], measured: _Measured
) -> tuple[str, ...]:
    others = (v.why for name, v in verdicts.items() if not v.asked and v.right is False and name in adapter.known_to)
    return (*adapter.notes, *others, *(f"stock diffusers warned: {w}" for w in measured.warned))


@torch.no_grad()
def _measure(family: Family, held: _Held, large: bool) -> _Measured:
    file, modules = held.file, held.modules
    changed = {name.partition(".")[0] for name in modules}
    inputs = held.trained.inputs if held.trained else outputs.encoded(family, changed)
    before = outputs.compute(family, inputs)
    if large:
        return _measure_large(family, held, inputs, before)
    with applied(family, modules):
        after = outputs.compute(family, inputs)
    effects, problems = _effects(family, modules, before, after)
    expected, limit = after, outputs.LIMIT[torch.float32]
    if held.trained:
        expected, limit = held.trained.outputs, outputs.LIMIT[held.dtype]
    elif held.live is not None:
        with applied(family, {n: change for n, change in held.live.items() if n in modules}):
            expected, limit = outputs.compute(family, inputs), outputs.LIMIT[held.dtype]
    apart = _apart(after, expected, before) if held.trained else None
    if held.trained and not all(outputs.agree(after[c], expected[c], before[c], limit) for c in after):
        problems += (_NOT_AS_TRAINED.format(_apart(after, expected, before)),)
    if reading.is_dir(file):  # PEFT's own layout, which load_lora_weights does not read
        return _Measured(effects, outputs=apart, problems=problems)
    refusal, warned = stock.load_stock(family, file)
    if refusal:
        return _Measured(effects, outputs=apart, problems=problems, stock_problems=(refusal,), asked=True)
    theirs = outputs.compute(family, inputs)
    wrong, worst = stock.stock_differences(family, modules)
    output = _apart(theirs, expected, before)
    found = []
    if wrong:
        found.append(stock.told_differently(wrong, modules))
    elif not all(outputs.agree(theirs[c], expected[c], before[c], limit) for c in theirs):
        found.append(f"the output in stock diffusers differs from the reference by {output:.1e} of the change")
    apart = None if apart is None else max(apart, output)
    return _Measured(effects, worst, output, apart, problems, tuple(found), True, tuple(warned))


_NOT_AS_TRAINED = "the outputs differ from the trained model's by {:.1e} of the change"


def _apart(found: dict[str, Tensor], expected: dict[str, Tensor], before: dict[str, Tensor]) -> float:
    """Of the component that is furthest off."""
    return max(outputs.off(found[c], expected[c], before[c]) for c in found)


def _measure_large(family: Family, held: _Held, inputs: outputs.Inputs, before: dict[str, Tensor]) -> _Measured:
    """Of a base in bf16: the effect is that of stock diffusers' live adapter, whose weights are in bf16 as well."""
    file, modules = held.file, held.modules
    if reading.is_dir(file):
        return _Measured(_effects(family, modules, before, None)[0])
    refusal, warned = stock.load_stock(family, file)
    if refusal:
        return _Measured(_effects(family, modules, before, None)[0], stock_problems=(refusal,), asked=True)
    theirs = outputs.compute(family, inputs)
    effects, problems = _effects(family, modules, before, theirs)
    wrong, worst = stock.stock_differences(family, modules, TOLERANCE[torch.bfloat16])
    found = (stock.told_differently(wrong, modules),) if wrong else ()
    if held.trained is None:
        return _Measured(effects, worst, None, None, problems, found, True, tuple(warned))
    expected, limit = held.trained.outputs, outputs.LIMIT[torch.bfloat16]  # that diffusers casts the adapter to
    apart = _apart(theirs, expected, before)
    if not all(outputs.agree(theirs[c], expected[c], before[c], limit, outputs.LARGE_NOISE) for c in theirs):
        problems += (_NOT_AS_TRAINED.format(apart),)
    return _Measured(effects, worst, None, apart, problems, found, True, tuple(warned))


def _effects(
    family: Family, modules: AdapterState, before: dict[str, Tensor], after: dict[str, Tensor] | None
) -> tuple[tuple[Effect, ...], tuple[str, ...]]:
    """What each component changes, and the sentence for one that changes nothing; after: None where not to be had."""
    names = sorted({name.partition(".")[0] for name in modules})
    effects = tuple(_effect(family, c, modules, before[c], after[c] if after else None) for c in names)
    return effects, tuple(f"{e.component}: {wrong}" for e in effects if (wrong := _wrong_effect(e)))


def _wrong_effect(effect: Effect) -> str:
    """What no adapter that works does; empty when it may."""
    if not effect.weight or effect.output == 0:
        return "the adapter changes nothing"
    if not math.isfinite(effect.weight) or not math.isfinite(effect.output or 0):
        return "with the adapter its outputs are not finite: pictures would be black"
    if effect.weight > MOST_CHANGE:
        return f"the adapter changes its weights by {effect.weight:.0e} times their size: pictures would be noise"
    return ""


def _effect(family: Family, component: str, modules: AdapterState, before: Tensor, after: Tensor | None) -> Effect:
    inside = {n: c for n, c in modules.items() if n.startswith(f"{component}.") and not c.is_zero()}
    change = sum(c.norm(base_weight(family, n, c)) ** 2 for n, c in inside.items()) ** 0.5
    whole = sum(float(dense(weight_of(family, n)).double().square().sum()) for n in inside) ** 0.5
    output = None if after is None else difference(after, before)
    return Effect(component, len(inside), change / whole if whole else 0.0, output)


def _to_live(family: Family, modules: AdapterState, live: AdapterState, dtype: torch.dtype) -> tuple[float, list[str]]:
    """The worst difference, and the modules past the dtype's tolerance.

    A module that hardly moved may round badly in half precision, so what is lost is measured against the mean module.
    """
    if not live:
        return 0.0, []
    known = {n: live[n] for n in sorted(live.keys() & modules.keys())}
    mean = (sum(c.norm(base_weight(family, n, c)) ** 2 for n, c in known.items()) / max(1, len(known))) ** 0.5
    floor = 0.0 if dtype == torch.float32 else mean
    worst, wrong = 0.0, []
    for name in known:
        a, b = (delta_of(family, name, one).double() for one in (modules[name], live[name]))
        off = float((a.reshape(b.shape) - b).norm())
        size = max(float(a.norm()), float(b.norm()))
        worst = max(worst, off / size if size else 0.0)
        if off > TOLERANCE[dtype] * max(size, floor):
            wrong.append(f"{name}: differs from the live model by {off / size:.1e}")
    return worst, wrong


def _surplus(modules: AdapterState, should: set[str]) -> list[str]:
    extra = [name for name, change in sorted(modules.items()) if name not in should and not change.is_zero()]
    return [f"{name}: not expected, and it changes the model" for name in extra]


def _hash_problems(file: Path, told: Mapping[str, str]) -> list[str]:
    if reading.is_dir(file):
        return []
    stated = {"sshs_model_hash": told.get("sshs_model_hash", "").lower().removeprefix("0x")}
    if "finetune.version" in told:  # others put other things there
        stated["modelspec.hash_sha256"] = told.get("modelspec.hash_sha256", "").removeprefix("0x")
    found = weights.payload_sha256(file)
    return [
        f"metadata {key} says {value[:12]}..., the weights are {found[:12]}...: changed after it was made"
        for key, value in stated.items()
        if value and value != found
    ]


def _file_dtype(file: Path) -> torch.dtype:
    """The narrowest float type of the weights."""
    if reading.is_dir(file):
        return torch.float32
    stored = weights.read_header(file).dtypes
    kinds = {DTYPES.get(kind, torch.bfloat16) for key, kind in stored.items() if not key.endswith(".alpha")}
    return max(kinds, key=lambda kind: TOLERANCE[kind], default=torch.float32)


def _fits(change: Change, shape: tuple[int, ...]) -> bool:
    """A 1 x 1 convolution may be written as a linear layer, and the reverse."""
    return change.shape[0] == shape[0] and math.prod(change.shape[1:]) == math.prod(shape[1:])


def _counted(values: Iterable[float]) -> dict[str, int]:
    return {f"{value:g}": count for value, count in sorted(Counter(values).items())}
