"""Fine-tune text-to-image diffusion models with LoRA and DreamBooth, and prove that it worked.

The names in `__all__` are what programs build on; docs/api.md shows them at work. Importing this loads none of the
libraries: each name brings what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune import errors as errors
    from finetune import events as events
    from finetune.api import (
        caption,
        compare,
        evaluate,
        export,
        inspect,
        load_recipe,
        mask,
        plan,
        prepare,
        report,
        sample,
        status,
        train,
        verify,
    )
    from finetune.recipe import Recipe

__version__ = "0.1.0"

__all__ = [
    "Recipe",
    "__version__",
    "caption",
    "compare",
    "errors",
    "evaluate",
    "events",
    "export",
    "inspect",
    "load_recipe",
    "mask",
    "plan",
    "prepare",
    "report",
    "sample",
    "status",
    "train",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("errors", "events"):
        return import_module(f"{__name__}.{name}")
    return getattr(import_module(f"{__name__}.{'recipe' if name == 'Recipe' else 'api'}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
