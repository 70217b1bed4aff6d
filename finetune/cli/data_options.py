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
    typer.Option(
        "--kind",
        help="Whether the images show one product or a style.",
        show_default="product, if there is a class word",
    ),
]
Template = Annotated[
    str | None,
    typer.Option(help="Caption for images that have none.", show_default="several wordings, such as "
                 "'a photo of {trigger} {class_word}'"),
]  # fmt: skip
CaptionsFromOption = Annotated[
    CaptionsFrom,
    typer.Option(
        "--captions-from",
        "--caption-from",
        help="Where the caption comes from if no caption file has one. auto: the file name, if it is made of words "
        "(bell.png: 'a bell, sks style'), else the template. filename: the file name only. description: text in the "
        "image itself (EXIF, IPTC, XMP, PNG text). none: the template.",
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
        help="How to read a folder name such as '10_sks mug'. repeats: as kohya does, its images have the weight 10, "
        "and 'sks mug' is the caption of those without one. plain: as a mere name.",
        show_default="repeats, unless the number looks like part of a name",
    ),
]
AllowUncaptioned = Annotated[
    bool,
    typer.Option(
        "--allow-uncaptioned",
        help="Use the template for images without a caption, also if others have one, and for a whole style.",
    ),
]
CaptionLinesOption = Annotated[
    CaptionLines,
    typer.Option(
        "--caption-lines",
        help="How to read a caption file of several lines. each: a caption per line, shown in turn. joined: one "
        "caption.",
    ),
]
License = Annotated[
    str,
    typer.Option(help="Licence of images that state none (in a column or a .license file), such as CC-BY-4.0 (SPDX)."),
]
Author = Annotated[str, typer.Option(help="Author of images that state none.")]
RequireLicense = Annotated[
    list[str] | None,
    typer.Option(
        "--require-license",
        metavar="SPDX,...",
        help="Use only images with one of these licences and reject the others: CC0-1.0,CC-BY-* (any version). "
        "Training checks it again.",
    ),
]
CaptionsOf = Annotated[
    Path | None,
    typer.Option(
        "--captions-of",
        metavar="DATASET",
        help="Reuse the captions that a person or a model wrote in this earlier dataset, for the same images.",
    ),
]
Thresholds = Annotated[
    list[str] | None,
    typer.Option(
        "--threshold",
        metavar="NAME=VALUE",
        help="Threshold of one audit check (default; range); may be repeated. similar: largest difference of "
        "near-duplicates, in bits of a 64-bit perceptual hash (10; 0 to 11). blurred: times softer than a sharp image "
        "at the training size (2.5; 1.5 to 32). upscaled: times larger than the image's detail (2; 1.2 to 32). border: "
        "share of a side (0.02; 0.002 to 0.45). background: share of images with the same background (0.9; 0.5 to 1). "
        "cast: octaves between colour channels (0.5; 0.1 to 4). fused: share of captions with the same word (1; 0.5 "
        "to 1).",
    ),
]
SourceNote = Annotated[str, typer.Option("--source", help="Origin of the images, recorded in the dataset.")]
BackgroundColour = Annotated[str, typer.Option(help="Colour behind transparent pixels: white, black or #rrggbb.")]
MaskFromOption = Annotated[
    MaskFrom,
    typer.Option(
        "--mask-from",
        help="Where masks come from. files: mask files beside the images (NAME-mask.png, NAME-masklabel.png, "
        "masks/NAME.png). alpha: also the transparency of images.",
    ),
]
Fix = Annotated[
    bool,
    typer.Option(
        "--fix",
        help="Apply the repairs that `finetune check` proposes: leave out near-duplicates and training images that "
        "resemble a held-out one, crop plain borders. The source is not changed.",
    ),
]
CaptionWith = Annotated[
    str,
    typer.Option(
        metavar="SPEC",
        help="Afterwards caption the images that have none, as `finetune caption` does: with `pocket` (bundled), a "
        "vocabulary file or a captioning model (folder or hub id).",
    ),
]
