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
        help="Folders of images, zip or tar archives, tables (parquet, arrow, JSON, CSV), hub ids (org/name@revision). "
        "SOURCE:2 is shown twice as often. Nothing in them is changed.",
    ),
]
Split = Annotated[str, typer.Option(help="Split of a table or hub data set.", show_default="train")]
Subset = Annotated[str, typer.Option(help="Subset (configuration) of a hub data set that has several.")]
ImageColumn = Annotated[str, typer.Option(help="Column of the images.", show_default="the only one that holds images")]
CaptionColumn = Annotated[
    str,
    typer.Option(help="Column of the captions; `none`: there are no captions.", show_default="the only one that fits"),
]
IgnoreColumn = Annotated[
    list[str] | None,
    typer.Option(
        help="Column that is not kept, such as a weight in grams. Repeatable.",
        show_default="weight, split, license, author, source, consent and captions are kept",
    ),
]
Limit = Annotated[int | None, typer.Option(help="Number of images that are taken of each table, at most.")]
Where = Annotated[
    list[str] | None,
    typer.Option(help="Condition on the rows of a table: 'aesthetic > 5', 'lang == en'. Repeatable; all must hold."),
]
Link = Annotated[bool, typer.Option("--link", help="Make hard links to images that need no change, instead of copies.")]


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
