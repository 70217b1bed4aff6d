"""Errors a user can act on, each with the exit code a script can act on.

FinetuneError
├── InputError          2    something the user gave cannot be used; nothing was lost
│   ├── RecipeError          the recipe, or a --set
│   ├── DataError            images, captions, a dataset folder
│   ├── BaseError            the base model, or an adapter file, does not fit
│   └── RunError             the output folder, disk, checkpoint or machine
├── MemoryShortage      3    the device has too little memory
├── TrainError          4    the run diverged, or had no effect
├── VerifyError         5    a file does not do what it should
└── Interrupted       130    Ctrl-C or SIGTERM; the state was saved

Anything else that escapes is a bug of ours and keeps its traceback (exit 1).
"""

from typing import ClassVar


class FinetuneError(Exception):
    """One sentence on what is wrong and where, and one on what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem, self.hint = problem, hint


class InputError(FinetuneError):
    exit_code = 2


class RecipeError(InputError): ...


class DataError(InputError): ...


class BaseError(InputError): ...


class RunError(InputError): ...


class MemoryShortage(FinetuneError):
    exit_code = 3


class TrainError(FinetuneError):
    exit_code = 4


class VerifyError(FinetuneError):
    exit_code = 5


class Interrupted(FinetuneError):
    exit_code = 130
