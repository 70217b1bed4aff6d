"""The options of `finetune prepare` and `finetune check`, some of which other commands have as well."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.choices import CaptionLines, CaptionsFrom, FolderNames, Kind, MaskFrom

Trigger = Annotated[
    str | None, typer.Option(help="A rare word that will stand for your product or style in prompts, such as sks.")
]
ClassWord = Annotated[str | None, typer.Option(help="What the product is, in one common word: mug, shoe, dog.")]
KindOption = Annotated[
    Kind | None,
    typer.Option("--kind", help="What the images show.", show_default="product, with a class word"),
]
Template = Annotated[
    str | None,
    typer.Option(help="The one caption for images that have none.", show_default="varied wordings, such as "
                 "'a photo of {trigger} {class_word}'"),
]  # fmt: skip
CaptionsFromOption = Annotated[
    CaptionsFrom,
    typer.Option(
        "--captions-from",
        "--caption-from",
        help="Captions that are in no file of captions come from file names that are words (bell.png: 'a bell, sks "
        "style'), from descriptions in the pictures (EXIF, IPTC, XMP, PNG text), else from the template.",
    ),
]
ClassImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--class-images",
        metavar="FOLDER",
        help="Class images of a prior (prior.path): name those that an image of the dataset shows.",
    ),
]
HtmlPage = Annotated[
    Path | None,
    typer.Option(
        "--html", metavar="FILE", help="Write a page that shows each image as it will be cropped, with its caption."
    ),
]
FolderNamesOption = Annotated[
    FolderNames,
    typer.Option(
        "--folder-names",
        help="What '10_sks mug' says as a folder's name: kohya's repeats, which weigh its pictures, and a caption for "
        "those without one; or nothing (plain).",
        show_default="repeats, unless the number looks like part of a name",
    ),
]
AllowUncaptioned = Annotated[
    bool,
    typer.Option("--allow-uncaptioned", help="Give the template to images without a caption, and to all of a style."),
]
CaptionLinesOption = Annotated[
    CaptionLines,
    typer.Option(
        "--caption-lines", help="What the lines of a caption file are: captions shown by turns, or one caption, joined."
    ),
]
License = Annotated[
    str, typer.Option(help="Licence of images that have none of their own (column, .license file), as SPDX names it.")
]
Author = Annotated[str, typer.Option(help="Author of images that have none of their own.")]
RequireLicense = Annotated[
    list[str] | None,
    typer.Option(
        "--require-license",
        metavar="SPDX,...",
        help="Use images of these licences only and reject the others: CC0-1.0,CC-BY-* (any version). Training keeps "
        "to it.",
    ),
]
CaptionsOf = Annotated[
    Path | None,
    typer.Option(
        "--captions-of",
        metavar="DATASET",
        help="Take captions that a person or a model wrote in a dataset prepared before, for images that are the same.",
    ),
]
Thresholds = Annotated[
    list[str] | None,
    typer.Option(
        "--threshold",
        metavar="NAME=VALUE",
        help="From where on the audit reports something; may be repeated. similar: bits in which near-duplicates "
        "differ (10; 0 to 11 of 64). blurred: times softer than sharp at the training size (2.5; 1.5 to 32). upscaled: "
        "times larger than its detail (2; 1.2 to 32). border: share of a side (0.02; 0.002 to 0.45). background: share "
        "of the images that have the same one (0.9; 0.5 to 1). cast: octaves between the colour channels (0.5; 0.1 to "
        "4). fused: share of the captions that have a word (1; 0.5 to 1).",
    ),
]
SourceNote = Annotated[str, typer.Option("--source", help="Origin of the images, recorded in the dataset.")]
BackgroundColour = Annotated[str, typer.Option(help="Colour behind transparent pixels: white, black or #rrggbb.")]
MaskFromOption = Annotated[
    MaskFrom,
    typer.Option(
        "--mask-from",
        help="Where masks come from: mask files beside the images (NAME-mask.png, NAME-masklabel.png, masks/NAME.png), "
        "or transparency as well.",
    ),
]
Fix = Annotated[
    bool,
    typer.Option(
        "--fix",
        help="Repair what `finetune check` names: leave out near-duplicates and training images that a held-out one "
        "shows, crop plain borders. Your folder stays as it is.",
    ),
]
CaptionWith = Annotated[
    str,
    typer.Option(
        metavar="SPEC",
        help="Then caption images that have no caption, as `finetune caption` does: `pocket` (bundled), a vocabulary "
        "file, or a model that describes pictures (its folder or hub id).",
    ),
]
