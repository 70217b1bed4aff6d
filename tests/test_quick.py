"""What `make quick` leaves out is what builds or opens a base, or trains; found by how a test is written."""

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from support import TESTS, bench, whole
from support.bases import tiny_base
from support.runs import begin

from finetune import families, recipe
from finetune.training import run


def builds(path: Any) -> Any:
    return tiny_base(path, "sd15")


def builds_in_a_helper(path: Any) -> Any:
    return [builds(path) for _ in range(2)]


def builds_in_a_lambda(path: Any) -> Any:
    return (lambda: tiny_base(path, "sd15"))()


def trains_on_the_bench(path: Any) -> Any:
    return bench.bench("pocket", path).train()


def trains_with_a_helper_of_other_modules(path: Any) -> Any:
    return begin(recipe.load(path), path, 2)


class Trained:
    def __init__(self, path: Any) -> None:
        run.run(recipe.load(path), path, lambda _: None)


def trains_in_a_class(path: Any) -> Any:
    return Trained(path)


def looks(path: Any) -> Any:
    return recipe.load(path), families.detect(str(path))


def item(function: Any, *fixtures: Any) -> Any:
    table = {fixture.__name__: (SimpleNamespace(func=fixture),) for fixture in fixtures}
    return SimpleNamespace(
        function=function, fixturenames=["request", *table], _fixtureinfo=SimpleNamespace(name2fixturedefs=table)
    )


@pytest.mark.parametrize(
    "function",
    [builds, builds_in_a_helper, builds_in_a_lambda, trains_on_the_bench, trains_with_a_helper_of_other_modules,
     trains_in_a_class],
)  # fmt: skip
def test_what_builds_or_trains_is_whole_by_itself_or_by_a_fixture(function: Any) -> None:
    assert whole.is_whole(item(function)) and whole.is_whole(item(looks, function))


def test_what_only_looks_is_quick() -> None:
    assert not whole.is_whole(item(looks)) and not whole.is_whole(item(looks, looks))


def test_the_files_that_are_begun_first_are_there() -> None:
    assert set(whole.LONGEST) <= {path.name for path in TESTS.rglob("test_*.py")}


def test_this_test_is_quick_and_told_so(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("whole") is None


@pytest.mark.parametrize("start", sorted(whole.STARTS))
def test_what_makes_a_test_whole_is_still_called_so(start: str) -> None:
    module, _, name = start.rpartition(".")
    found = getattr(import_module(module), name)
    assert f"{found.__module__}.{found.__qualname__}" == start
