"""Libraries that others import to see whether they are there: loaded when something of theirs is first used."""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class Later(ModuleType):
    """Stands where the module will be; it is found, and what it says of itself does not load it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # others look at every module there is
            raise AttributeError(name)
        return getattr(_loaded(self.__name__), name)


def put_off(name: str) -> None:
    """Have `import name` load nothing yet. One that is there already, or not installed, stays as it is."""
    if name in sys.modules or (spec := find_spec(name)) is None:
        return
    module = Later(name)
    module.__spec__, module.__file__ = spec, spec.origin
    sys.modules[name] = module


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
