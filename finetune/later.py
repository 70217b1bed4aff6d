"""Libraries that others import to see whether they are there: loaded when something of theirs is first used."""

import sys
from collections.abc import Callable, Collection
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class Later(ModuleType):
    """Stands where the module will be; it is found, and what it says of itself does not load it."""

    def __init__(self, name: str, functions: Collection[str] = ()) -> None:
        super().__init__(name)
        self._finetune_functions = frozenset(functions)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # others look at every module there is
            raise AttributeError(name)
        if name in self._finetune_functions:
            return _called_later(self.__name__, name)
        if name == "__path__" and self._finetune_functions and not _imports_a_part():
            raise AttributeError(name)  # `from module import function` asks for it, and needs none
        return getattr(_loaded(self.__name__), name)


def put_off_optional() -> None:
    """What diffusers, transformers and PEFT import wherever it is installed, and most commands have no use for.

    bitsandbytes takes a second, scipy's statistics and optimizers half a one.
    """
    put_off("bitsandbytes")
    for name in ("scipy.stats", "scipy.integrate"):
        put_off(name)
    put_off("scipy.optimize", functions=["linear_sum_assignment"])


def put_off(name: str, functions: Collection[str] = ()) -> None:
    """Have `import name` load nothing yet. One that is there already, or not installed, stays as it is.

    functions: those that may be imported by their names without loading it, too; only a call does.
    """
    package = name.partition(".")[0]
    if name in sys.modules or (spec := find_spec(package)) is None:
        return
    module = Later(name, functions)
    module.__spec__ = spec if package == name else ModuleSpec(name, None)
    module.__file__ = spec.origin
    sys.modules[name] = module


def _imports_a_part() -> bool:
    """Whether it is the import system that asks a module for its path, to find a module inside of it."""
    return sys._getframe(2).f_code.co_name == "_find_and_load_unlocked"


def _called_later(module: str, name: str) -> Callable[..., Any]:
    def function(*args: Any, **options: Any) -> Any:
        return getattr(_loaded(module), name)(*args, **options)

    function.__name__ = name
    return function


def _loaded(name: str) -> ModuleType:
    waiting = sys.modules.get(name)
    if not isinstance(waiting, Later):
        return import_module(name)
    del sys.modules[name]
    try:
        return import_module(name)
    except BaseException:
        sys.modules[name] = waiting
        raise
