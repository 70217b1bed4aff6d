"""What several commands have in common: their options, and how they print."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from finetune.recipe import bounds
from finetune.recipe.tables import shown
from finetune.reporting.shown import harmless, harmless_json


def number(key: str, **told: Any) -> Any:
    """An option that is a number within the bounds of that key of a recipe (or of `bounds.OWN`)."""
    return typer.Option(parser=_reader(key), metavar="N" if bounds.is_whole(key) else "NUMBER", **told)


def _reader(key: str) -> Callable[[Any], float]:
    kind, called = (int, "a whole number") if bounds.is_whole(key) else (float, "a number")

    def read(text: Any) -> float:
        try:
            found = kind(text)
        except (ValueError, OverflowError):
            raise typer.BadParameter(f"{shown(text)} is not {called}") from None
        if problem := bounds.violation(key, found):
            raise typer.BadParameter(problem)
        return found

    return read


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
    typer.Option(
        help="Folder of the CLIP or DINOv2 model that scores the pictures.",
        show_default="the run's; the pocket base has its own",
    ),
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

    def json_rows(self, value: Mapping[str, object], rows: Mapping[str, Iterable[object]]) -> None:
        """The object with lists of rows under further keys, one row on a line: they are not held, however many."""
        if not self.as_json:
            return
        typer.echo(harmless_json(json.dumps(value, indent=2, ensure_ascii=False)).removesuffix("\n}"), nl=False)
        for key, some in rows.items():
            typer.echo(f',\n  "{key}": [', nl=False)
            for number, row in enumerate(some):
                line = harmless_json(json.dumps(row, ensure_ascii=False))
                typer.echo(f"{',' if number else ''}\n    {line}", nl=False)
            typer.echo("\n  ]", nl=False)
        typer.echo("\n}")

    def json(self, value: object, indent: int | None = 2) -> None:
        if self.as_json:
            typer.echo(harmless_json(json.dumps(value, indent=indent, ensure_ascii=False)))
