"""Errors a user can act on, each with the exit code a script can act on.

FinetuneError
├── InputError          2    something the user gave cannot be used; nothing was lost
│   ├── RecipeError          the recipe, or an override
│   ├── DataError            images, captions, a dataset folder
│   ├── BaseError            the base model, or an adapter file, does not fit
│   └── RunError             the output folder, disk, checkpoint or machine
├── MemoryShortage      3    the device has too little memory
├── TrainError          4    the run diverged, or had no effect
│   └── NotLearnt            the file is kept, but what it was trained for is not in its pictures
├── VerifyError         5    a file does not do what it should
└── Interrupted       130    Ctrl-C or SIGTERM; the state was saved
    └── PeerLost             another process of the run has ended; so does this one

Anything else that escapes is a bug of ours and keeps its traceback (exit 1).
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple


class Action(NamedTuple):
    """A next step, as a call: train(recipe='mug.toml', out='runs/mug'). The command line words it as a command."""

    name: str
    arguments: Mapping[str, object]

    def __str__(self) -> str:
        shown = (
            f"{name}={value if isinstance(value, bool) else repr(str(value))}" for name, value in self.arguments.items()
        )
        return f"{self.name}({', '.join(shown)})" if self.arguments else self.name


def action(name: str, /, **arguments: object) -> Action:
    """Arguments that are None, False or empty are left out."""
    return Action(name, {key: value for key, value in arguments.items() if value not in (None, False, "")})


class FinetuneError(Exception):
    """What is wrong and where; what to do next, in a sentence, as a call, or both.

    Sentences name the arguments of a call in backquotes: `base_bits`. Whoever shows an error words them for its reader:
    the command line writes its own flags in their place.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, problem: str, hint: str = "", action: Action | None = None, other: tuple[str, Action] | None = None
    ) -> None:
        super().__init__(problem)
        self.problem, self.hint, self.action = problem, hint, action
        self.other = other
        """what else could be done next"""
        if self.advice:
            self.add_note(f"try: {self.advice}")
        if other:
            self.add_note(f"or: {advice(other[0], str(other[1]))}")

    @property
    def advice(self) -> str:
        """What to do next, in the words of Python."""
        return advice(self.hint, str(self.action) if self.action else "")


def advice(hint: str, step: str) -> str:
    """A sentence and the step that it leads to."""
    return ": ".join(filter(None, (hint, step)))


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


class NotLearnt(TrainError):
    """The file is proved and kept, but what it was trained for is not in its pictures."""


class VerifyError(FinetuneError):
    exit_code = 5


class Interrupted(FinetuneError):
    exit_code = 130


class PeerLost(Interrupted):
    """Another process that trains the same run has ended, so that this one cannot go on."""


class SaidByAnother(Exception):
    """Ends a rank whose fault, or whose end, the first rank tells; nothing is to be shown."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code
