"""Errors in the words of the command line: what the library calls `base_bits` is `--base-bits` here."""

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import typer

from finetune.errors import Action, FinetuneError, advice

Command = Any
"""click's; newer versions of Typer carry a click of their own, which is another class"""


def command_of(app: Command, arguments: Sequence[str]) -> Command:
    """The command that these arguments of the program name."""
    command = app
    for word in arguments:
        command = getattr(command, "commands", {}).get(word, command)
    return command


def worded(error: FinetuneError, app: Command, arguments: Sequence[str]) -> tuple[str, str]:
    """(what is wrong, what to try) of an error that a call of the program with these arguments ended with."""
    command = command_of(app, arguments)
    return flags(error.problem, command), tried(error.hint, error.action, app, command)


def otherwise(error: FinetuneError, app: Command, arguments: Sequence[str]) -> str:
    """What else could be tried after such an error; empty: nothing."""
    return tried(*error.other, app, command_of(app, arguments)) if error.other else ""


def tried(hint: str, step: Action | None, app: Command, command: Command) -> str:
    """Advice given where `command` runs."""
    return advice(flags(hint, command), written(step, app) if step else "")


def flags(text: str, command: Command) -> str:
    """`name` as the flag of the command's own option of that name, where it has one."""
    own = {p.name: p.opts[0] for p in command.params if p.param_type_name == "option"}
    return re.sub(r"`(\w+)`", lambda named: own.get(named[1], named[0]), text)


def written(step: Action, app: Command) -> str:
    """A step as the command that carries it out."""
    words = step.name.split()
    return shlex.join(["finetune", *words, *_arguments(step, command_of(app, words))])


def worded_here(step: Action) -> str:
    """A step as a command of this program."""
    from finetune.cli import app

    return written(step, typer.main.get_command(app))


_CALL = re.compile(r"(\w+)\((\w+='[^']*'(?:, \w+='[^']*')*)\)")


def with_commands(text: str) -> str:
    """A sentence of the library's, in which calls such as caption(path='photos') are commands of this program."""
    from finetune.cli import app

    program = typer.main.get_command(app)
    commands = getattr(program, "commands", {})

    def command(call: re.Match[str]) -> str:
        given = dict(re.findall(r"(\w+)='([^']*)'", call[2]))
        return f"`{written(Action(call[1], given), program)}`" if call[1] in commands else call[0]

    return _CALL.sub(command, text)


def _arguments(step: Action, command: Command) -> Iterator[str]:
    for parameter in sorted(command.params, key=lambda p: p.param_type_name != "argument"):
        if parameter.name not in step.arguments:
            continue
        value = step.arguments[parameter.name]
        if parameter.param_type_name == "option":
            yield parameter.opts[0]
        if value is not True:
            yield str(value)
