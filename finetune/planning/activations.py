"""What one step keeps in memory beside the weights, found on the model's structure alone: nothing is computed.

The forward pass runs on the meta device, and what autograd would keep for the backward pass is counted. Fused attention
is taken to keep its inputs, its output and one number a row (arXiv:2205.14135), as it does on GPUs and CPUs.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune import families
from finetune.families.base import Conditioning, Family, Text
from finetune.families.parts import Parts
from finetune.machine import DTYPES
from finetune.planning.plan import Plan


def activation_bytes(plan: Plan) -> int | None:
    """Kept until the backward pass of one batch at the largest bucket, in the run's precision; None: not to be known
    without a real step."""
    ghost = _ghost(plan)
    config, facts = plan.recipe, plan.facts
    bucket = max((p.bucket for p in plan.train.placed), key=lambda b: b.width * b.height)
    batch, shape = config.train.batch, facts.latent_shape(bucket.width, bucket.height)
    noisy = torch.empty(batch, *shape, device="meta")
    control = tuple(torch.empty_like(noisy) for _ in plan.train.placed[0].example.controls)
    counted = _Counted([p for m in ghost.parts.loaded().values() for p in m.parameters()])
    denoiser: Any = ghost.parts[ghost.denoiser_name]
    if config.train.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing(counted.checkpoint)
    t = ghost.process.at(torch.full((batch,), 0.5)).to("meta")
    try:
        with torch.device("meta"), _fused_attention(), counted.hooks():
            ghost.predict(noisy, t, Conditioning(_text(plan, batch), torch.ones(batch, 6), control))
    except NotImplementedError:  # what torch says of an operation whose result's shape depends on values
        return None
    # a prior's forward pass is kept beside; blocks are computed again one at a time
    return counted.outside() * (1 if config.prior.mode == "off" else 2) + counted.inside


class _Counted:
    """Bytes of storages that autograd keeps, each once, and none of the parameters'."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.known = {_storage(p) for p in parameters}
        self.kept: dict[int, Tensor] = {}
        self.inside = 0
        """of the largest block that is computed again in the backward pass"""

    def hooks(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autograd.graph.saved_tensors_hooks(self.keep, lambda kept: kept)

    def keep(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self.known:
            self.kept.setdefault(_storage(tensor), tensor)
        return tensor

    def checkpoint(self, block: Callable[..., Any], *inputs: Any, **more: Any) -> Any:
        """In place of torch's: the inputs are kept, and what is inside only once, while it is computed again."""
        for given in (*inputs, *more.values()):
            if isinstance(given, Tensor):
                self.keep(given)
        inner = _Counted([])
        inner.known = self.known | self.kept.keys()
        with inner.hooks():
            made = block(*inputs, **more)
        self.inside = max(self.inside, inner.outside())
        return made

    def outside(self) -> int:
        """Bytes kept, but for what is inside of blocks that are computed again."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.kept.values())


def _ghost(plan: Plan) -> Family:
    """The family with its trained structure on the meta device in place of weights."""
    from finetune.adapters import attach as adapters

    base, config = families.locate(plan.recipe.base), plan.recipe.adapter
    kind = families.family_class(plan.facts.family)
    modules = kind.on_meta(base, plan.facts)
    for module in modules.values():
        module.to(DTYPES[plan.recipe.train.precision])
        module.requires_grad_(False)
    trained = {name: modules[name] for name in adapters.component_names(config, kind.denoiser_name)}
    adapters.attach(trained, kind.presets, config, seed=0)
    for module in trained.values():
        module.train()
    parts = Parts({})
    parts.hold(modules)
    return kind.around(base, plan.facts, parts)


def _text(plan: Plan, batch: int) -> Text:
    tokens, width, pooled = plan.facts.text
    return Text(
        torch.empty(batch, tokens, width),
        torch.empty(batch, pooled) if pooled else None,
        torch.ones(batch, tokens, dtype=torch.bool) if plan.facts.masked else None,
    )


@contextlib.contextmanager
def _fused_attention() -> Iterator[None]:
    """On the meta device torch would write attention out, and keep its whole matrix."""
    real = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = real


def _attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    made: Tensor = _Fused.apply(query, key, value)  # type: ignore[no-untyped-call]
    return made


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        made = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, made, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return made

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return None, None, None


def _storage(tensor: Tensor) -> int:
    found: int = tensor.untyped_storage()._cdata
    return found
