"""Which tests are whole: they build or open a base, or run a training run. `make quick` leaves these out."""

import dis
import functools
import inspect
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from support import TESTS

STARTS = {
    "support.bases.tiny_base",
    "support.command.ran",
    "support.fuzzing.fuzzed",
    "support.hostile.children",
    "support.hostile.forked",
    "finetune.families.load",
    "finetune.families.single_file.SingleFile",
    "finetune.families.single_file.open_checkpoint",
    "finetune.training.run.run",
    "finetune.training.loop.train",
    "finetune.cli.training_view.train",
    "finetune.evaluation.similarity.FeatureExtractor",
}
"""what a whole test reaches; a process of its own counts, as it may train"""
LONGEST = (
    "test_learns.py", "test_disk_faults.py", "test_resume.py", "test_contract.py", "test_recipes.py",
    "test_options.py", "test_doc_blocks.py", "test_shard.py", "test_rehearsal.py", "test_own_denoiser.py",
    "test_quantised.py", "test_large_bases.py", "test_family_parity.py", "test_run.py", "test_pick.py",
    "test_own_recipe.py", "test_stopped.py", "test_failures.py", "test_stream.py", "test_untidy.py", "test_parity.py",
)  # fmt: skip
"""files that are begun first, so that no process is left waiting for another's last one"""


def is_whole(item: Any) -> bool:
    """By the names that a test, its fixtures and the functions of the tests that they call are written with."""
    return any(_starts(function) for function in _functions(item))


@functools.cache
def _starts(function: object) -> bool:
    return _reaches(function, set())


def _functions(item: Any) -> Iterator[object]:
    yield item.function
    for name in item.fixturenames:
        for definition in item._fixtureinfo.name2fixturedefs.get(name, ()):
            yield definition.func


def _reaches(thing: object, seen: set[object]) -> bool:
    if _name(thing) in STARTS:
        return True
    if not _is_ours(thing) or thing in seen:
        return False
    seen.add(thing)
    return any(_reaches(used, seen) for function in _parts(thing) for used in _used(function))


def _name(thing: object) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"


def _is_ours(thing: object) -> bool:
    if not isinstance(thing, types.FunctionType | type):
        return False
    try:
        return Path(inspect.getfile(thing)).is_relative_to(TESTS)
    except (TypeError, OSError):
        return False


def _parts(thing: object) -> Iterator[types.FunctionType]:
    """A function itself; of a class its methods."""
    found = vars(thing).values() if isinstance(thing, type) else [thing]
    for one in found:
        inner = getattr(one, "__func__", getattr(one, "fget", one))
        if isinstance(inner, types.FunctionType):
            yield inner


@functools.cache
def _used(function: types.FunctionType) -> tuple[object, ...]:
    """Every global that it names, and what it names inside of a module or a class: `run`, and `run.run`."""
    return tuple(value for code in _codes(function.__code__) for value in _named(code, function.__globals__))


def _named(code: types.CodeType, found: Mapping[str, object]) -> Iterator[object]:
    value: object = None
    for step in dis.get_instructions(code):
        if step.opname == "LOAD_GLOBAL":
            value = found.get(step.argval)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(value, types.ModuleType | type):
            value = vars(value).get(step.argval)
        else:
            value = None
            continue
        yield value


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
