"""Errors in the words of the command line: what the library calls `base_bits` is `--base-bits` here."""

import re
from collections.abc import Sequence
from typing import Any

from finetune.errors import FinetuneError

Command = Any
"""click's; newer versions of Typer carry a click of their own, which is another class"""


def command_of(app: Command, arguments: Sequence[str]) -> Command:
    """The command that these arguments of the program name."""
    command = app
    for word in arguments:
        command = getattr(command, "commands", {}).get(word, command)
    return command


def worded(error: FinetuneError, command: Command) -> str:
    """The sentences to print."""
    hint = f"\n  try: {_flags(error.hint, command)}" if error.hint else ""
    return f"error: {_flags(error.problem, command)}{hint}\n"


def _flags(text: str, command: Command) -> str:
    """`name` as the flag of the command's own option of that name, where it has one."""
    flags = {str(p.name): p.opts[0] for p in command.params if p.param_type_name == "option"}
    return re.sub(r"`(\w+)`", lambda named: flags.get(named[1], named[0]), text)
