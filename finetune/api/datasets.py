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
    """Make a dataset at `out` from folders of photos, which are only read: upright, RGB, each with its final caption.

    source: a folder, a zip or tar archive, a table (parquet, arrow, JSON, CSV) or a hub id ("org/name@revision"), or
    several. A text may end in a weight, "photos:2"; a Path is taken as it is. split, subset, image_column,
    caption_column, ignore_column, limit, where ("aesthetic > 5"): what is taken of tables. link: hard links instead of
    copies of images that need no change.
    trigger: a rare word that will stand for the product or style. class_word: what it is, in one common word.
    kind: "product" or "style"; a class word alone says product. captions_from: captions that nobody wrote come, "auto",
    from file names that are words, else from varied templates; "filename": from names only; "description": from what
    the pictures' own files say (EXIF, IPTC, XMP, PNG text); "none": from templates. folder_names: what `10_sks mug`
    says as a folder's name, "repeats" as kohya means it (weight and caption), "plain" nothing, "auto" by the name.
    template: the one caption instead; allow_uncaptioned: although others have one, or a style is not described.
    license, author: of pictures that have none of their own, in a table's columns or a `.license` file beside them;
    require_license: pictures of other licences are rejected, SPDX identifiers, or `CC-BY-*` for any version of one.
    caption_lines: of a caption file, "each" a caption, shown by turns, or "joined" to one. captions_of: a dataset
    prepared before, whose captions by a person or a model are taken for pictures that are the same. mask_from:
    "alpha" makes masks of transparency, beside those that have files. source_note: recorded in the dataset.
    background: RGB in 0..255 behind transparent pixels. fix: near-duplicates and leaks are left out and plain borders
    cropped, from thresholds on such as {"similar": 6} (docs/data.md). What was left out, and why, is in the result's
    `card.rejected`, what was changed in `card.changes`.

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
    """Caption the pictures of a prepared dataset, or of a raw folder, that have no caption or only the template.

    vocabulary: a TOML file of what may be seen, or "pocket"; judge: the folder of the CLIP that looks, if not the
    vocabulary's own. with_model: instead of these a transformers model that describes pictures (BLIP, Florence-2,
    Qwen-VL), by folder or hub id; prompt: what it is asked, if not what is usual for it; of its answers the setting of
    a product is kept, and the content of a style. command: a program instead, "CMD {image}", that prints a caption
    within timeout_s seconds. trigger, class_word, kind, captions_from: as for `prepare`, of a raw folder. again:
    pictures that a model or a file's name captioned, too; a person's caption is never changed. Captions are written to
    metadata.jsonl as they are made; the result has those of this call, and `refused` has the answers that are none.

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
    """Mask the pictures of a prepared dataset that have no mask, with_model: CLIPSeg (prompt: what it looks for, if not
    the class word) or SAM, by folder or hub id, or "background" (of one colour); or by a command, "CMD {image} {mask}",
    within timeout_s seconds. again: those that were masked here, too. Raises InputError: none of it made a mask."""
    with quiet():
        from finetune.masking.choice import MaskerChoice, mask_quietly

        return mask_quietly(Path(path), MaskerChoice(str(with_model), command, prompt, timeout_s).checked(), again)
