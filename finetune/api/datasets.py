"""The calls that make datasets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.api.quiet import quiet
from finetune.choices import CaptionLines, CaptionsFrom, FolderNames, MaskFrom

if TYPE_CHECKING:
    from finetune.captioning.dataset import Captioned
    from finetune.data.example import Dataset
    from finetune.data.images.colours import Colour
    from finetune.data.text.wording import DatasetKind
    from finetune.masking.dataset import Masked


def prepare(
    source: "Path | str | Sequence[Path | str]", out: Path | str, *, trigger: str | None = None,
    class_word: str | None = None, kind: "DatasetKind" = "", template: str | None = None, license: str = "",
    author: str = "", require_license: Sequence[str] = (), source_note: str = "",
    background: "Colour" = (255, 255, 255), captions_from: CaptionsFrom = "auto", allow_uncaptioned: bool = False,
    caption_lines: CaptionLines = "each", captions_of: Path | str | None = None, folder_names: FolderNames = "auto",
    mask_from: MaskFrom = "files", split: str = "", subset: str = "", image_column: str = "",
    caption_column: str = "", ignore_column: Sequence[str] = (), limit: int | None = None, where: Sequence[str] = (),
    link: bool = False, fix: bool = False, thresholds: Mapping[str, float] | None = None,
) -> "Dataset":  # fmt: skip
    """Make a dataset at `out` from one source or several: pictures upright and in RGB, each with its final caption.

    source: a folder, a zip or tar archive, a table (parquet, arrow, JSON, CSV) or a hub dataset ("org/name@revision"),
    or a list of these; sources are only read. A text may end in a weight, "photos:2"; a Path is taken literally.
    split, subset, image_column, caption_column, ignore_column, limit, where ("aesthetic > 5"): which rows and columns
    of tables are read. link: hard links instead of copies for images that need no change.
    trigger: a rare word that will stand for the product or style. class_word: what it is, in one common word. kind:
    "product" or "style"; default: product if there is a class word. captions_from: where a caption comes from if no
    caption file has one, "auto" from the file name if it is made of words, else from templates; "filename" from the
    file name only; "description" from text in the image itself (EXIF, IPTC, XMP, PNG text); "none" from templates.
    folder_names: how to read a folder name such as `10_sks mug`, "repeats" as kohya does (weight and caption), "plain"
    as a mere name, "auto" as repeats unless the number looks like part of a name. template: the caption for pictures
    without one; allow_uncaptioned: use it although others have one, or for a whole style.
    license, author: of pictures that state none in a table's columns or a `.license` file; require_license: SPDX
    identifiers, or `CC-BY-*` for any version; pictures with other licences are rejected. caption_lines: the lines of a
    caption file are "each" a caption, shown in turn, or "joined" into one. captions_of: an earlier dataset, whose
    captions by a person or a model are reused for the same pictures. mask_from: "alpha" makes masks from transparency,
    beside mask files. source_note: origin of the pictures, recorded. background: RGB in 0..255 behind transparent
    pixels. fix: leaves out near-duplicates and leaks and crops plain borders; thresholds: such as {"similar": 6}
    (docs/data.md). What was left out, and why, is in the result's `card.rejected`, what was changed in `card.changes`.

    Raises:
        DataError: a source has problems, or `out` is not empty or lies inside a source.
        RunError: `out` cannot be written.
    """
    from finetune.data import prepare as preparing
    from finetune.data.quality.thresholds import thresholds_of
    from finetune.data.sources.conditions import condition
    from finetune.data.sources.tables import Selection

    with quiet():
        selection = Selection(split, subset, image_column, caption_column, tuple(ignore_column), limit,
                              tuple(map(condition, where)))  # fmt: skip
        return preparing.prepare(
            source, Path(out), trigger=trigger, class_word=class_word, kind=kind, template=template,
            license=license, author=author, require_license=require_license, source_note=source_note,
            background=background, captions_from=captions_from, allow_uncaptioned=allow_uncaptioned,
            caption_lines=caption_lines, captions_of=None if captions_of is None else Path(captions_of),
            folder_names=folder_names, mask_from=mask_from, selection=selection, link=link,
            fix=fix, thresholds=thresholds_of(thresholds or {}),
        )  # fmt: skip


def caption(
    path: Path | str, *, vocabulary: Path | str = "", command: str = "", judge: Path | str = "",
    timeout_s: float = 120, trigger: str | None = None, class_word: str | None = None, kind: "DatasetKind" = "",
    captions_from: CaptionsFrom = "auto", again: bool = False, with_model: Path | str = "", prompt: str = "",
) -> "Captioned":  # fmt: skip
    """Write captions for pictures of a prepared dataset or a raw folder that have none, or only the template.

    Give one of three. vocabulary: lists of words from which CLIP picks, a TOML file or "pocket"; judge: the folder of
    the CLIP model, default the vocabulary's own. with_model: a captioning model (BLIP, Florence-2, Qwen-VL), by folder
    or hub id; prompt: its instruction, default its usual one; for a product the setting is kept from its answers, for
    a style the content. command: a program, "CMD {image}", that prints a caption within timeout_s seconds.
    trigger, class_word, kind, captions_from: as for `prepare`, for a raw folder. again: also replaces captions from a
    model or a file name; those of a person are never changed. Captions are written to metadata.jsonl one by one; the
    result has those of this call, and `refused` has the answers that cannot be used as captions.

    Raises:
        InputError: the folder or the captioner cannot be used, or no answer is a caption.
    """
    with quiet():
        from finetune.captioning.choice import CaptionerChoice
        from finetune.captioning.dataset import caption_dataset
        from finetune.data.text.captions import clean_words
        from finetune.events import unheard

        choice = CaptionerChoice(str(vocabulary), command, str(judge), timeout_s, str(with_model), prompt)
        choice.check()
        words = clean_words(trigger, class_word, None, kind, captions_from)
        return unheard(caption_dataset(Path(path), words, choice.make, again))


def mask(
    path: Path | str, *, with_model: Path | str = "", command: str = "", prompt: str = "", timeout_s: float = 120,
    again: bool = False,
) -> "Masked":  # fmt: skip
    """Make masks for pictures of a prepared dataset that have none. Give one of two. with_model: CLIPSeg (prompt: what
    it should find, default the class word) or SAM, by folder or hub id, or "background" (of one colour). command: a
    program, "CMD {image} {mask}", that writes a mask within timeout_s seconds. again: also replaces masks that this
    call made earlier. Raises InputError: no mask was made."""
    with quiet():
        from finetune.masking.choice import MaskerChoice, mask_quietly

        return mask_quietly(Path(path), MaskerChoice(str(with_model), command, prompt, timeout_s).checked(), again)
