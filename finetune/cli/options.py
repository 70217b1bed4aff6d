"""What several commands have in common: their options, and how they print."""

import json
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from finetune.reporting.shown import harmless, harmless_json

AsJson = Annotated[
    bool, typer.Option("--json", help="Print only JSON, on stdout; an error is one JSON line on stderr.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result and errors only.")]
Base = Annotated[
    str, typer.Option(help="Base model: `pocket` (bundled), a diffusers folder, a .safetensors checkpoint or a hub id.")
]


TrainingPictures = Annotated[
    Path | None, typer.Option(help="Folder of the training pictures.", show_default="the one that the run names")
]
Judge = Annotated[
    Path | None,
    typer.Option(help="Folder of a CLIP or DINOv2.", show_default="the run's; the pocket base has its own"),
]
ARGUMENTS = "finetune.arguments"
"""under which the context keeps the words that the program was called with"""


class Output(NamedTuple):
    """Where a command's sentences go: to the screen, unless JSON or only the result is wanted."""

    as_json: bool = False
    quiet: bool = False

    @property
    def details(self) -> bool:
        """Are more than the result and errors wanted?"""
        return not (self.as_json or self.quiet)

    def result(self, text: str) -> None:
        """The one line that says what came out."""
        if not self.as_json:
            typer.echo(harmless(text))

    def json(self, value: object, indent: int | None = 2) -> None:
        if self.as_json:
            typer.echo(harmless_json(json.dumps(value, indent=indent, ensure_ascii=False)))
