"""All that an optimizer keeps, as tensors and JSON: the state of each parameter, and what each group counts for itself.

Prodigy's distance, or the weights of schedule-free's mean, stand in the group: without them a run resumes as another.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.optim import Optimizer

from finetune.errors import RunError
from finetune.ranks import as_spread, whole

SET_ANEW = ("params", "lr", "name")
"""entries of a group that the resumed run sets by itself: its length, and so its learning rates, may be another"""
KEPT_DTYPES = frozenset({
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint8, torch.bool,
})  # fmt: skip
"""what every safetensors can hold"""


def pack(optimizer: Optimizer, keep: bool = True) -> tuple[dict[str, Tensor], Any]:
    """Tensors by path, and the rest as JSON that names them. Copies, on the CPU; all of what is spread over ranks, who
    must all call. keep: without, this rank only takes part, and gets empty tensors.

    Raises:
        RunError: it keeps something that neither can hold; says what.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate's, around it
    held = dict(optimizer.state_dict())
    held["param_groups"] = [_own(optimizer, group) for group in held["param_groups"]]
    tensors: dict[str, Tensor] = {}
    return tensors, _Packer(optimizer, tensors, keep).node(held, "")


def unpack(optimizer: Optimizer, tensors: Mapping[str, Tensor], tree: Any) -> None:
    """Give an optimizer that was built anew what another one kept, to the bit."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = _unpacked(tree, tensors, parameters[0].device)
    fresh = optimizer.state_dict()["param_groups"]
    kept["param_groups"] = [{**new, **old} for new, old in zip(fresh, kept["param_groups"], strict=True)]
    for index, slots in kept["state"].items():
        spread = {slot: as_spread(one, parameters[index]) for slot, one in slots.items() if isinstance(one, Tensor)}
        slots.update(spread)
    saved = {index: dict(slots) for index, slots in kept["state"].items()}
    optimizer.load_state_dict(kept)
    for index, slots in saved.items():
        held = optimizer.state[parameters[index]]
        for slot, tensor in slots.items():
            # torch gives loaded state the parameter's dtype, whatever the optimizer had chosen
            if isinstance(tensor, Tensor) and slot in held and held[slot].dtype != tensor.dtype:
                held[slot] = tensor.to(held[slot].device)


def _own(optimizer: Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is set anew; a function is left out where it is an option, which the constructor gives again."""
    return {name: held for name, held in group.items()
            if name not in SET_ANEW and not (callable(held) and held is optimizer.defaults.get(name))}  # fmt: skip


class _Packer:
    def __init__(self, optimizer: Optimizer, tensors: dict[str, Tensor], keep: bool) -> None:
        self.optimizer, self.tensors, self.keep = optimizer, tensors, keep

    def node(self, held: object, path: str) -> Any:
        if held is None or isinstance(held, bool | int | float | str):
            return held
        if isinstance(held, Tensor):
            return self.tensor(held, path)
        if isinstance(held, list | tuple) and type(held) in (list, tuple):
            return {type(held).__name__: [self.node(one, f"{path}/{i}") for i, one in enumerate(held)]}
        if isinstance(held, dict) and all(type(name) in (int, str) for name in held):
            return {"dict": [[name, self.node(one, f"{path}/{name}")] for name, one in held.items()]}
        self.refuse(path, type(held).__name__)

    def tensor(self, held: Tensor, path: str) -> dict[str, object]:
        if held.layout != torch.strided or held.dtype not in KEPT_DTYPES:
            self.refuse(path, f"tensor of {held.dtype}, {held.layout}")
        if path[1:] in self.tensors:
            self.refuse(path, "tensor beside another of that name")
        found = whole(held.detach())
        self.tensors[path[1:]] = found.to("cpu", copy=True) if self.keep else found.new_empty(0)
        return {"tensor": path[1:], "cpu": held.device.type == "cpu"}

    def refuse(self, path: str, what: str) -> NoReturn:
        raise RunError(
            f"{type(self.optimizer).__name__} cannot be saved: a checkpoint cannot hold its {path[1:]} ({what})",
            "another optimizer.name; its state would be lost, and a resumed run would be another one",
        )


def _unpacked(node: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    match node:
        case {"tensor": name, "cpu": on_cpu}:
            return tensors[name] if on_cpu else tensors[name].to(device)
        case {"dict": pairs}:
            return {name: _unpacked(one, tensors, device) for name, one in pairs}
        case {"list": several}:
            return [_unpacked(one, tensors, device) for one in several]
        case {"tuple": several}:
            return tuple(_unpacked(one, tensors, device) for one in several)
    return node
