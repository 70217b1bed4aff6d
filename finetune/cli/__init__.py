"""The command line: reads arguments, shows results, prints errors. No logic, and nothing heavy until it is needed."""

import errno
import gc
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from finetune import __version__
from finetune.cli import (
    captioning,
    comparing,
    data,
    evaluation,
    files,
    masking,
    report,
    sampling,
    status,
    system,
    training,
)
from finetune.cli.options import ARGUMENTS
from finetune.cli.streams import guarded
from finetune.cli.wording import otherwise, worded
from finetune.errors import FinetuneError, InputError, SaidByAnother
from finetune.reporting.shown import harmless, harmless_json
from finetune.shortage import out_of_memory

_UsageError: Any = typer.BadParameter.__base__
"""click's, or that of the click which newer versions of Typer carry"""


class Program(TyperGroup):
    """Shared options may stand before the command, too; with --json, misuse is an error like others."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.obj = "--json" in args
        ctx.meta[ARGUMENTS] = list(args)
        first = next((i for i, word in enumerate(args) if word not in ("--json", "--quiet", "-q")), len(args))
        with _told(ctx):
            return super().parse_args(ctx, [*args[first:], *args[:first]] if first < len(args) else args)

    def invoke(self, ctx: Any) -> Any:
        with _told(ctx):
            return super().invoke(ctx)


@contextmanager
def _told(ctx: Any) -> Iterator[None]:
    try:
        yield
    except _UsageError as e:
        if ctx.obj:
            raise InputError(e.format_message(), f"{(e.ctx or ctx).command_path} --help") from e
        raise


app = typer.Typer(
    cls=Program, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"finetune {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune a text-to-image model on a product or a style, and verify that it worked.

    First time? `finetune quickstart` does the whole job on bundled pictures.
    With your own pictures: prepare, check, recipes copy, plan, train, sample.
    """


for part in (system, data, captioning, masking, training, report, status, files, evaluation, comparing, sampling):
    part.register(app)


def main() -> None:
    hush()
    gc.set_threshold(MANY_OBJECTS)
    with guarded() as out:
        code = _carried_out()
        out.flush()
        if out.lost:
            sys.stderr.write(
                f"error: not all output could be written: {out.lost}\n  try: free some space, or --quiet\n"
            )
    gc.freeze()  # else the interpreter walks through all libraries' objects, several times, before it ends
    raise SystemExit(code or (2 if out.lost and _command_of(sys.argv[1:]) not in _RESULTS_ARE_FILES else 0))


MANY_OBJECTS = 10_000
"""new ones, before the collector looks for cycles: it finds hardly any in libraries that are imported, and takes a
fifth of the time that these take"""
_MACHINE_FAULTS = {
    errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ENOMEM,
}  # fmt: skip
"""what may fail anywhere, and is no bug of ours"""
_RESULTS_ARE_FILES = {"train", "quickstart"}
"""commands that have done their work, whatever became of their words"""


def _command_of(arguments: list[str]) -> str:
    """Options may stand before it."""
    return next((word for word in arguments if not word.startswith("-")), "")


def _carried_out() -> int:
    """The exit code."""
    try:
        with out_of_memory():
            app()
    except SaidByAnother as e:
        return e.exit_code
    except FinetuneError as e:
        sys.stderr.write(_printed(e, sys.argv[1:]))
        return e.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    except OSError as e:
        if e.errno not in _MACHINE_FAULTS:
            raise
        where = f"{e.filename}: " if e.filename else ""
        fault = InputError(f"{where}{e.strerror}", "this machine has too little of something: disk, memory, open files")
        sys.stderr.write(_printed(fault, sys.argv[1:]))
        return fault.exit_code
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    return 0


def _printed(error: FinetuneError, arguments: list[str]) -> str:
    program = typer.main.get_command(app)
    problem, tried = worded(error, program, arguments)
    other = otherwise(error, program, arguments)
    if "--json" in arguments:
        told = {"error": problem, "try": tried, **({"or": other} if other else {}), "exit_code": error.exit_code}
        return harmless_json(json.dumps(told, ensure_ascii=False)) + "\n"
    steps = {"try": tried, "or": other}
    said = f"error: {problem}\n" + "".join(f"  {word}: {step}\n" for word, step in steps.items() if step)
    return harmless(said)


def hush() -> None:
    """Keep other libraries' chatter off the screen; their errors still come through."""
    for variable in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    for variable in ("HF_HUB_DISABLE_PROGRESS_BARS", "TF_CPP_MIN_LOG_LEVEL"):
        os.environ.setdefault(variable, "1")
    for name in ("accelerate", "bitsandbytes", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
