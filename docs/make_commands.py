"""Write docs/commands.md from the program itself: python docs/make_commands.py

Every command, argument, option, default and help text is what `finetune COMMAND -h` shows; a test fails when the page
is stale.
"""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

from finetune import errors
from finetune.cli import app

PAGE = Path(__file__).parent / "commands.md"
HEAD = """# Commands

`finetune COMMAND -h` shows the same on the screen. `--quiet` and `--json` may also stand before the command. With
`--json` only JSON is printed on stdout, and an error is one JSON line on stderr with `error`, `try` and `exit_code`.
`finetune --install-completion` completes commands in your shell.

This page is made from the program by `python docs/make_commands.py`.
"""
MEANINGS: dict[int, tuple[type[errors.FinetuneError] | None, str]] = {
    0: (None, "done; the result is verified and, if it was judged, learnt"),
    1: (errors.FinetuneError, "an error in finetune itself, with its traceback: please report it"),
    2: (errors.InputError, "the command, recipe, data, base or folder cannot be used; nothing was lost"),
    3: (errors.MemoryShortage, "not enough memory; the message says what to lower first"),
    4: (
        errors.TrainError,
        "diverged, had no effect, or the product or style is not seen in its pictures; checkpoints and file are kept",
    ),
    5: (errors.VerifyError, "a file does not do what it should"),
    130: (errors.Interrupted, "interrupted; the state is saved, and the command that continues is printed"),
}
"""exit code -> the error that ends so, and what that means to a user"""


class Parameter(NamedTuple):
    """An argument or an option of a command."""

    name: str
    type: Any
    info: Any
    """what typer.Argument or typer.Option was told"""
    value: Any

    @property
    def is_option(self) -> bool:
        return isinstance(self.info, OptionInfo)

    @property
    def required(self) -> bool:
        return self.value is inspect.Parameter.empty

    @property
    def flags(self) -> list[str]:
        written = [word for word in (self.info.default, *(self.info.param_decls or ())) if str(word).startswith("-")]
        return written or [f"--{self.name.replace('_', '-')}"]

    @property
    def typed(self) -> str:
        """The word that stands for what is typed; nothing for a switch."""
        if self.info.metavar:
            return str(self.info.metavar).replace("|", " or ").translate(str.maketrans("", "", "{}[]"))
        return "" if self.type is bool else self.name.upper() if not self.is_option else _kind(self.type)


def page() -> str:
    """The whole page."""
    parts = [HEAD, *(_section(name, command) for name, command in commands().items()), _exit_codes()]
    return "\n".join(parts)


def commands(program: typer.Typer = app, prefix: str = "") -> dict[str, Callable[..., None]]:
    """Each command by its full name (train, recipes list), as the function that carries it out."""
    found = {}
    for one in program.registered_commands:
        assert one.callback
        found[prefix + (one.name or one.callback.__name__)] = one.callback
    for group in program.registered_groups:
        assert group.typer_instance
        found |= commands(group.typer_instance, f"{prefix}{group.name} ")
    return found


def parameters(command: Callable[..., None]) -> list[Parameter]:
    """Arguments first, in the order of the function."""
    hints = get_type_hints(command, include_extras=True)
    found = [
        Parameter(name, hints[name].__origin__, hints[name].__metadata__[0], one.default)
        for name, one in inspect.signature(command).parameters.items()
        if hasattr(hints[name], "__metadata__") and not getattr(hints[name].__metadata__[0], "hidden", False)
    ]
    return sorted(found, key=lambda one: one.is_option)


def _section(name: str, command: Callable[..., None]) -> str:
    about = _marked(re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(command.__doc__ or "")))
    found = parameters(command)
    head = [f"## {name}\n", f"`{' '.join(['finetune', name, *_usage(found)])}`\n", f"{about}\n"]
    return (
        "\n".join([*head, "| argument or option | default | what it does |", "|---|---|---|", *map(_row, found)]) + "\n"
    )


def _usage(found: list[Parameter]) -> list[str]:
    """What must be given, as it is typed."""
    words = [one.typed if one.required else f"[{one.typed}]" for one in found if not one.is_option]
    return [*words, *(f"{one.flags[0]} {one.typed}" for one in found if one.is_option and one.required), "[OPTIONS]"]


def _row(one: Parameter) -> str:
    names = ", ".join(f"`{flag}`" for flag in one.flags) + f" {one.typed}" if one.is_option else f"`{one.typed}`"
    return f"| {names.strip()} | {_default(one)} | {_marked(one.info.help)} |"


def _marked(text: str) -> str:
    """Safe in a table of Markdown: flags and {placeholders} as code."""
    parts = re.split(r"(`[^`]*`)", text.replace("|", r"\|"))
    return "".join(p if p.startswith("`") else re.sub(r"([{]\w+[}]|--[a-z][\w-]*)", r"`\1`", p) for p in parts)


def _kind(hint: Any) -> str:
    """What is typed after an option of that type."""
    words = [f"`{word}`" for word in _choices(hint)]
    if words:
        return ", ".join(words[:-1]) + f" or {words[-1]}"
    inner = [one for one in get_args(hint) or (hint,) if one is not NoneType]
    return {int: "N", float: "NUMBER", Path: "PATH"}.get(inner[0], "TEXT")


def _choices(hint: Any) -> tuple[Any, ...]:
    """The words of a Literal, also of one that may be None."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next((found for one in get_args(hint) if (found := _choices(one))), ())


def _default(one: Parameter) -> str:
    if one.required:
        return "required"
    if isinstance(one.info.show_default, str):
        return _marked(one.info.show_default)
    return "" if one.value in (None, "", False) else f"`{one.value}`"


def _exit_codes() -> str:
    rows = [f"| {code} | {meaning} |" for code, (_, meaning) in MEANINGS.items()]
    return "\n".join(["## Exit codes\n", "| exit code | means |", "|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
