"""The options of `finetune prepare` for sources that are more than a folder."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from finetune.data.sources.tables import Selection

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="Folders of images, zip or tar archives, tables (parquet, arrow, JSON, CSV) or hub datasets "
        "(org/name@revision). SOURCE:2 has the weight 2: its images are shown twice as often. Sources are only read.",
    ),
]
Split = Annotated[str, typer.Option(help="Split of a table or hub dataset to read.", show_default="train")]
Subset = Annotated[str, typer.Option(help="Subset (configuration) of a hub dataset that has several.")]
ImageColumn = Annotated[
    str, typer.Option(help="Column with the images.", show_default="the only one that holds images")
]
CaptionColumn = Annotated[
    str,
    typer.Option(
        help="Column with the captions; `none` if there are no captions.", show_default="the only one that fits"
    ),
]
IgnoreColumn = Annotated[
    list[str] | None,
    typer.Option(
        help="Column to ignore, such as a `weight` in grams. May be repeated.",
        show_default="none: weight, split, license, author, source, consent and captions are used",
    ),
]
Limit = Annotated[int | None, typer.Option(help="Largest number of images to take from each table.")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        help="Take only table rows with 'aesthetic > 5' or 'lang == en', for example. May be repeated; all must hold."
    ),
]
Link = Annotated[bool, typer.Option("--link", help="Hard-link images that need no change instead of copying them.")]


def selection(
    split: str,
    subset: str,
    image_column: str,
    caption_column: str,
    ignore_column: Sequence[str] | None,
    limit: int | None,
    where: Sequence[str] | None,
) -> "Selection":
    """What is taken of tables. Raises DataError: a condition is none."""
    from finetune.data.sources.conditions import condition
    from finetune.data.sources.tables import Selection

    conditions = tuple(map(condition, where or ()))
    return Selection(split, subset, image_column, caption_column, tuple(ignore_column or ()), limit, conditions)
