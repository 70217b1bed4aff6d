"""Whether a part's configuration can be of its weights: looked at before anything is built by it.

A number in a configuration may say ten million layers, and a module of so many is built for hours, weights or not. The
weights' header tells how many there can be.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune import reading
from finetune.errors import BaseError
from finetune.tensors import Header

MOST = 1 << 20
"""of any number in a configuration: a width, a vocabulary, a context, steps of a schedule"""
_NO_SIZE = re.compile(r"theta|version|_id$|clipped")
"""numbers that nothing is built by; a scheduler's lambda_min_clipped is -Infinity"""
_WIDTH = re.compile(r"vocab|channels|heads|embed|hidden_size|intermediate|ff_dim|_dim$|^dim$|^d_\w+$")
_USUAL_WIDTH = 4096
"""up to which a width may stand in a configuration that its weights have nothing of: the defaults of libraries"""
_LAYERS = re.compile(r"(^|_)(n|num|refiner|single|hidden|double)?_?(layers|blocks|depth)(_|$)|^depths?$")
_NO_LAYERS = re.compile("^max_")
"""such as max_window_layers, the last layer that something is done in"""
_PER_BLOCK = ("layers_per_block", "transformer_layers_per_block", "reverse_transformer_layers_per_block")
_FAULTY = "is the configuration that of these weights? fetch the base again"


def check_config(path: Path, headers: Sequence[Header], file: Path | None = None) -> None:
    """path: config.json. headers: of the files of weights that belong to it. file: the first of them, which is named.

    Raises:
        BaseError: it says more layers than the weights have tensors, or a number beyond all bounds.
    """
    if not reading.is_file(path):
        return
    path = reading.real_path(path)
    told = reading.read_json(path, BaseError, "fetch the base again", finite=False)
    shapes = {name: shape for header in headers for name, shape in header.shapes.items()}
    tensors = len(shapes)
    check_numbers(told, str(path))
    widest = max([_USUAL_WIDTH, *(size for shape in shapes.values() for size in shape)])
    rotary = not any("position_embedding" in name for name in shapes)  # positions that no weights are of
    for key, value in _leaves(told):
        if _WIDTH.search(key) and not (rotary and "position" in key) and _largest(value) > widest:
            raise BaseError(f"{path}: {key} is {_largest(value):,.0f}, and no weight is wider than {widest:,}", _FAULTY)
    layers = _layers(told)
    if layers > tensors:
        held = f"{reading.real_path(file)} holds" if file else "the weights are"
        raise BaseError(f"{path} says at least {layers:,.0f} layers, and {held} {tensors:,} tensors", _FAULTY)


def check_numbers(told: Mapping[str, Any], where: str, most: int = MOST) -> None:
    """Raises BaseError: a number, or the length of a list, is beyond what any model has."""
    for key, value in _leaves(told):
        if isinstance(value, list) and len(value) > most:
            raise BaseError(f"{where}: {key} has {len(value):,} entries", _FAULTY)
        if not _NO_SIZE.search(key) and not _largest(value) <= most:  # nor NaN
            raise BaseError(f"{where}: {key} has a number above {most:,}, which no model has", _FAULTY)


def _leaves(told: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(key, value) of every table in it, too."""
    for key, value in told.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield key, value


def _layers(told: Mapping[str, Any]) -> float:
    """The fewest layers that a configuration asks for; each has a tensor at least."""
    found = 0.0
    for key, value in told.items():
        if isinstance(value, Mapping):
            found += _layers(value)
        elif key not in _PER_BLOCK and _LAYERS.search(key) and not _NO_LAYERS.search(key):
            found += len(value) if isinstance(value, list) else _total(value)  # a list names layers
    blocks = max((len(value) for key, value in told.items() if "block" in key and isinstance(value, list)), default=1)
    of_each, inside = told.get("layers_per_block", 1), told.get("transformer_layers_per_block", 1)
    return found + _product(of_each, blocks) * max(1.0, _mean(inside))


def _product(of_each: object, blocks: int) -> float:
    return _total(of_each) if isinstance(of_each, list) else _total(of_each) * blocks


def _total(value: object) -> float:
    """Of a number, or of the numbers in a list, however deep."""
    if isinstance(value, list):
        return sum(map(_total, value))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _largest(value: object) -> float:
    """Of a number, or of the numbers in a list, however deep, without its sign."""
    if isinstance(value, list):
        return max(map(_largest, value), default=0.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(abs(value)) if abs(value) < 10**300 else float("inf")


def _mean(value: object) -> float:
    return _total(value) / max(1, len(value)) if isinstance(value, list) else _total(value)
