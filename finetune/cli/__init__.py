"""The command line: reads arguments, shows results, prints errors. No logic, and nothing heavy until it is needed."""

import logging
import os
import sys
import warnings

import typer

from finetune.cli import data, files, sampling, system, training
from finetune.cli.wording import command_of, worded
from finetune.errors import FinetuneError

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None,
    help="Fine-tune text-to-image diffusion models on a product or a style, and prove that it worked.",
)  # fmt: skip
for part in (system, data, training, files, sampling):
    part.register(app)


def main() -> None:
    hush()
    try:
        app()
    except FinetuneError as e:
        sys.stderr.write(worded(e, command_of(typer.main.get_command(app), sys.argv[1:])))
        raise SystemExit(e.exit_code) from None
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        raise SystemExit(130) from None


def hush() -> None:
    """Keep other libraries' chatter off the screen; their errors still come through."""
    for variable in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    for variable in ("HF_HUB_DISABLE_PROGRESS_BARS", "TF_CPP_MIN_LOG_LEVEL"):
        os.environ.setdefault(variable, "1")
    for library in ("bitsandbytes", "accelerate"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
