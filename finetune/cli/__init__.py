"""The command line: reads arguments, shows results, prints errors. No logic, and nothing heavy until it is needed."""

import sys

import typer

from finetune.cli import data, files, sampling, system, training
from finetune.errors import FinetuneError

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None,
    help="Fine-tune text-to-image diffusion models on a product or a style, and prove that it worked.",
)  # fmt: skip
for part in (system, data, training, files, sampling):
    part.register(app)


def main() -> None:
    try:
        app()
    except FinetuneError as e:
        sys.stderr.write(f"error: {e.problem}\n" + (f"  try: {e.hint}\n" if e.hint else ""))
        raise SystemExit(e.exit_code) from None
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        raise SystemExit(130) from None
