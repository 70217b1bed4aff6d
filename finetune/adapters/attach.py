"""Trainable parts: attached to a frozen model, frozen again, read out. The only importer of peft.

Component names are those of files: the denoiser's (unet, transformer), text_encoder, text_encoder_2.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import model as peft_lora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from finetune.adapters import full
from finetune.adapters.change import AdapterState, Change, Method, canonical_name, matches
from finetune.adapters.layers import shorten
from finetune.adapters.lora import Lora, copied, subtract
from finetune.adapters.methods import METHODS
from finetune.diffusion.chance import key
from finetune.errors import RecipeError, VerifyError
from finetune.families.quantised import dense
from finetune.recipe import Adapter, LowRank

Trainable = dict[str, dict[str, nn.Parameter]]
"""component -> name in that component -> parameter, float32"""
Presets = Mapping[str, Mapping[str, tuple[str, ...]]]


def attach(components: Mapping[str, nn.Module], presets: Presets, config: Adapter, seed: int) -> Trainable:
    """Put the adapter into these components; the change is zero at first.

    Raises:
        RecipeError: a target or rank pattern matches nothing.
    """
    for component, module in components.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(seed, "adapter", component))
            _inject(module, presets[component], config, component)
        for parameter in module.parameters():
            # peft gives the adapter the base's dtype; in bf16 small updates round to nothing
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return trained_in(components)


def trained_in(components: Mapping[str, nn.Module]) -> Trainable:
    return {c: {n: p for n, p in m.named_parameters() if p.requires_grad} for c, m in components.items()}


@torch.no_grad()
def start_from(components: Mapping[str, nn.Module], start: AdapterState) -> None:
    """Put another adapter's change into those that are attached, exactly; what they have more of stays without effect.

    Raises:
        RecipeError: a module of it is not attached, or has a larger rank.
    """
    layers = dict(_layers(components))
    lacking = sorted(start.keys() - layers.keys())
    if lacking:
        raise RecipeError(
            f"adapter.init_from: it changes {len(lacking)} modules that are not trained, {lacking[0]} first",
            "add them to adapter.components and adapter.targets, or nothing of them would be kept",
        )
    for name, change in start.items():
        rank = len(layers[name].lora_A["default"].weight)
        if change.rank > rank:
            raise RecipeError(
                f"adapter.init_from: {name} has rank {change.rank}, and {rank} here",
                f"adapter.rank = {max(one.rank for one in start.values())}",
            )
        _method(layers[name], "default").put(layers[name], change)


def _inject(module: nn.Module, presets: Mapping[str, tuple[str, ...]], config: Adapter, component: str) -> None:
    if not isinstance(config, LowRank):
        full.attach(module)
        return
    chosen = targets(module, presets, _written(config, component))
    scale = config.alpha / config.rank
    ranks = {n: r for p, r in config.ranks.items() for n in chosen if matches(n, p)}
    method = METHODS[config.method]
    told = LoraConfig(
        r=config.rank, lora_alpha=config.rank * scale, target_modules=chosen, lora_dropout=config.dropout,
        rank_pattern={f"^{n}$": r for n, r in ranks.items()},
        alpha_pattern={f"^{n}$": r * scale for n, r in ranks.items()},
        **method.PEFT,
    )  # fmt: skip
    module.requires_grad_(False)
    with known_in_full([module]):
        inject_adapter_in_model(told, module)
    for _, layer in _layers({component: module}):
        method.prepare(layer)
        shorten(layer)


@contextmanager
def known_in_full(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block PEFT may put layers into these modules. Into those that hold no weights in few bits it puts the
    same with and without bitsandbytes, and is spared its import."""
    asks = ("is_bnb_available", "is_bnb_4bit_available")
    before = {name: getattr(peft_lora, name) for name in asks}
    if not any(getattr(m, f"is_loaded_in_{bits}bit", False) for m in modules for bits in (4, 8)):
        for name in asks:
            setattr(peft_lora, name, lambda: False)
    try:
        yield
    finally:
        for name, ask in before.items():
            setattr(peft_lora, name, ask)


def component_names(config: Adapter, denoiser: str) -> list[str]:
    """File names of the components a recipe trains, the denoiser first."""
    return [denoiser if c == "denoiser" else c for c in sorted(set(config.components))]


def targets(component: nn.Module, presets: Mapping[str, tuple[str, ...]], written: str | Sequence[str]) -> list[str]:
    """Module names that a preset or patterns choose.

    A pattern is a name's ending (`to_q`, `attn2.to_k`) or a shell pattern over the whole name (`up_blocks.*.to_v`).

    Raises:
        RecipeError: no such preset, or a pattern without a match.
    """
    patterns = presets.get(written, (written,)) if isinstance(written, str) else tuple(written)
    idle = tuple(f"{n}." for n, m in component.named_modules() if getattr(m, "never_read", False))
    names = [n for n, m in component.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    names = [n for n in names if not f"{n}.".startswith(idle)]
    chosen = {n for p in patterns for n in names if matches(n, p)}
    vain = [p for p in patterns if not any(matches(n, p) for n in names)]
    if vain and not (isinstance(written, str) and written in presets and chosen):
        raise RecipeError(
            f"adapter targets: {', '.join(map(repr, vain))} match no module",
            f"presets: {', '.join(presets)}; module names look like {names[len(names) // 2]}",
        )
    return [n for n in names if n in chosen]


@contextmanager
def disabled(components: Mapping[str, nn.Module]) -> Iterator[None]:
    """The base as it was, inside the block."""
    layers = [m for c in components.values() for m in c.modules() if isinstance(m, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True  # enable_adapters() would also flip requires_grad
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def read_changes(components: Mapping[str, nn.Module]) -> dict[str, Change]:
    """What the adapter does to each module. Copies, float32, on the CPU."""
    return {name: _method(layer, "default").of_layer(layer, "default") for name, layer in _layers(components)}


def read_layer(layer: Any, adapter: str) -> Change | None:
    """What a named adapter does to a module; None: it does not."""
    return _method(layer, adapter).of_layer(layer, adapter) if adapter in getattr(layer, "lora_A", {}) else None


def changed_modules(component: nn.Module) -> int:
    """How many carry an adapter."""
    return sum(isinstance(module, BaseTunerLayer) for module in component.modules())


def _method(layer: Any, adapter: str) -> Method:
    return next(method for method in METHODS.values() if method.has(layer, adapter))


def check_read(trainable: Trainable, exported: AdapterState) -> None:
    """Every trained tensor is in what is exported, bit for bit, each once.

    Raises:
        VerifyError: names the first that is not.
    """
    lost = [name for component, named in trainable.items() for name in _left_out(component, named, exported)]
    if lost:
        count = sum(map(len, trainable.values()))
        raise VerifyError(
            f"{len(lost)} of {count} trained tensors are not in what is exported, {lost[0]} first",
            "the adapter method must export all that it trains; the checkpoint holds it",
        )


def _left_out(component: str, named: Mapping[str, nn.Parameter], exported: AdapterState) -> Iterator[str]:
    left = {module: list(one.tensors().values()) for module, one in exported.items()}
    for name, parameter in named.items():
        own = left.get(canonical_name(component, _module_path(name)), [])
        trained = copied(parameter)
        found = next((i for i, t in enumerate(own) if t.shape == trained.shape and torch.equal(t, trained)), None)
        if found is None:
            yield f"{component}.{name}"
        else:
            del own[found]


def _module_path(name: str) -> str:
    """A trained parameter's name -> its module's path: PEFT puts `lora_A.default.weight` after it, and the like."""
    return re.sub(r"\.(base_layer|lora_\w+)(\..*)?$|\.[^.]+$", "", name, count=1)


def movement(components: Mapping[str, nn.Module], start: AdapterState) -> dict[str, tuple[float, float]]:
    """canonical name -> norms of its change since `start`, and of the frozen weight, of the modules that carry one."""
    # one at a time: of a quantised base all of them written out would not fit
    found = {}
    for name, layer in _layers(components):
        weight, change = dense(layer.get_base_layer().weight), _method(layer, "default").of_layer(layer, "default")
        found[name] = (weight_distance(change, start.get(name), copied(weight)), float(weight.double().norm()))
    return found


def weight_distance(change: Change, start: Change | None, weight: Tensor) -> float:
    """The norm of a change of that weight, without another one."""
    if start is None:
        return change.norm(weight)
    if isinstance(change, Lora) and isinstance(start, Lora):
        return subtract(change, start).norm(weight)
    return float((change.delta(weight).double() - start.delta(weight).reshape(change.shape).double()).norm())


def _layers(components: Mapping[str, nn.Module]) -> Iterator[tuple[str, Any]]:
    for component, module in components.items():
        for path, layer in module.named_modules():
            if isinstance(layer, BaseTunerLayer):
                yield canonical_name(component, path), layer


def check_ranks(components: Mapping[str, nn.Module], presets: Presets, config: Adapter) -> None:
    """Raises RecipeError when a pattern of adapter.ranks matches no target of any trained component."""
    if not isinstance(config, LowRank) or not config.ranks:
        return
    names = [n for c, module in components.items() for n in targets(module, presets[c], _written(config, c))]
    idle = [p for p in config.ranks if not any(matches(n, p) for n in names)]
    if idle:
        raise RecipeError(
            f"adapter.ranks: {', '.join(map(repr, idle))} match no module that adapter.targets chooses",
            f"targets are {names[0]} and {len(names) - 1} more",
        )


def _written(config: LowRank, component: str) -> str | tuple[str, ...]:
    return config.text_encoder_targets if component.startswith("text_encoder") else config.targets
