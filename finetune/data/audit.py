"""The audit of a dataset folder: every file accounted for, every image with its final caption.

The identity, by counting: files = seen + captions + masks + ignored, and seen = used + rejected. `captions` are the
sidecars that belong to an image, the metadata tables and dataset.toml; `ignored` are hidden and system files, each
named.
"""

import posixpath
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from finetune import reading
from finetune.choices import CaptionLines, CaptionsFrom, FolderNames
from finetune.data import conventions, examine, folder
from finetune.data.attributes import NO_ATTRIBUTES, Attributes
from finetune.data.companions import companions_in
from finetune.data.examine import Examined, Twins
from finetune.data.example import CARD, DatasetCard, Example
from finetune.data.folder import MAX_ASPECT, MIN_SIDE_PX, Rejected, Rules
from finetune.data.images import decode
from finetune.data.images.colours import WHITE, Colour
from finetune.data.images.decode import ImageInfo
from finetune.data.masks import look_at_masks
from finetune.data.quality import caption_checks
from finetune.data.rights import licence_files
from finetune.data.rights.licences import Rights
from finetune.data.rights.provenance import Cleared, LicenceSum, clear_licences, sums
from finetune.data.text import caption_files, captions, carried_captions
from finetune.data.text.caption_files import CaptionSource, FoundCaptions
from finetune.data.text.captions import CaptionNote, Coverage, FinalCaptions
from finetune.data.text.wording import CaptionOrigin, CaptionWords, DatasetKind, wordings
from finetune.errors import Action, DataError, action
from finetune.events import Event, unheard

MOST_NAMED = 100
"""rejected files in one error"""


@dataclass(frozen=True)
class Audit:
    """What an audit reports: the images that are used, the files that are not, and what is wrong or worth knowing."""

    root: Path
    files: int
    """The number of all files in the folder and its subfolders."""
    captions: int
    """The number of sidecars that belong to an image, metadata tables and dataset.toml."""
    ignored: tuple[str, ...]
    """The names of hidden and system files."""
    used: tuple[Example, ...]
    rejected: tuple[Rejected, ...]
    notes: tuple[CaptionNote, ...]
    problems: tuple[str, ...]
    """Sentences, each about something that makes the whole dataset unusable."""
    wordless: bool
    """One of the problems is that words are not declared which captions need."""
    caption_source: CaptionSource
    infos: Mapping[str, ImageInfo]
    """The file facts of each used image, by name."""
    card: DatasetCard
    prepared: bool
    provenance: tuple[CaptionNote, ...]
    """Those of the notes that are on licences, and on captions of an earlier dataset."""
    pixels: Mapping[str, str]
    """The digest of each used image's pixels, by name, where they were read."""
    understood: tuple[str, ...] = ()
    """What was made of files and folders that are as other trainers have them; among the notes, too."""
    asked: Mapping[str, object] = field(default_factory=dict)
    """The options that the same call has again; of a prepared dataset none."""
    masks: int = 0
    """The number of files that are masks of images."""
    looks: Mapping[str, bytes] = field(default_factory=dict)
    """How each picture that was decoded looks, by name, as `looks.measure_looks` packs it."""

    @property
    def seen(self) -> int:
        return self.files - self.captions - self.masks - len(self.ignored)

    @property
    def masked(self) -> int:
        """How many images have a mask."""
        return sum(e.mask is not None for e in self.used)

    @property
    def origins(self) -> dict[CaptionOrigin, int]:
        """How many captions a person, a file's name, a model or the template gave."""
        return dict(Counter(e.origin for e in self.used))

    @property
    def coverage(self) -> Coverage:
        return captions.coverage([caption for e in self.used for caption in e.captions], self.card.trigger)

    @property
    def licenses(self) -> tuple[LicenceSum, ...]:
        """Pictures by licence."""
        return sums((e.attributes for e in self.used), Rights(self.card.license, self.card.author))


def audit(
    path: Path,
    *,
    trigger: str | None = None,
    class_word: str | None = None,
    template: str | None = None,
    kind: DatasetKind = "",
    captions_from: CaptionsFrom = "auto",
    allow_uncaptioned: bool = False,
    caption_lines: CaptionLines = "each",
    min_side_px: int = MIN_SIDE_PX,
    max_aspect: float = MAX_ASPECT,
    background: Colour = WHITE,
    folder_names: FolderNames = "auto",
) -> Audit:
    """Accounts for every file of the folder, decodes every image in full and writes every final caption.

    Raises:
        DataError: there is no such folder, or its dataset.toml is broken or contradicts the trigger or class word.
    """
    words = captions.clean_words(trigger, class_word, template, kind, captions_from, allow_uncaptioned, caption_lines)
    return audit_folder(path, words, Rules(min_side_px, max_aspect, background, folder_names=folder_names))


def audit_folder(path: Path, words: CaptionWords, rules: Rules) -> Audit:
    """Audits a folder; an image is decoded in full where the rules say so."""
    return unheard(auditing(path, words, rules))


def auditing(
    path: Path, words: CaptionWords, rules: Rules, twins: Twins | None = None
) -> Generator[Event, None, Audit]:
    """`audit_folder`, telling how far it is where that takes long. twins: what was seen before, in other folders."""
    root = folder.locate_images(path)
    card = _card(root)
    prepared = card is not None
    if card is not None:
        words = _words_of(path, card, words)
    tree = folder.walk(root)
    rights = _rights(rules.rights, card)
    found_captions = _find(root, [name for name in tree.files if name != CARD])
    caption_carriers = found_captions.files | {r.file for r in found_captions.orphans} | {CARD}
    images = [name for name in tree.files if name not in caption_carriers]
    beside = companions_in(root, images, found_captions, prepared)
    if accompanying := beside.files:
        images = [name for name in images if name not in accompanying]
    examined = yield from examine.examine(root, images, tree, rules, twins)
    beside = beside.of(examined.infos)
    masks = yield from look_at_masks(root, beside.masks, examined.infos, tree, rules)
    cleared = clear_licences(
        list(examined.infos), found_captions.attributes, rights, bool(card and card.require_license)
    )
    refused = {r.file for r in cleared.refused}
    rejected = sorted([*tree.rejected, *found_captions.orphans, *examined.rejected, *beside.rejected, *cleared.refused])
    names = [name for name in examined.infos if name not in refused]
    found_captions, carried = yield from _carried(rules, names, examined, found_captions, words, cleared)
    if tree.links:
        names.sort(key=folder.natural)
    ignored, files = tuple(tree.ignored), len(tree.files) + len(tree.ignored) + len(tree.rejected)
    del tree, images, caption_carriers  # of very many files they take more than what follows
    if prepared:
        read = conventions.of_prepared(found_captions)
        final = captions.final_captions(names, found_captions, words)
    else:
        read = conventions.of_raw(root, names, found_captions, words, rules)
        found_captions = read.captions
        final = captions.compose(names, found_captions, words)
    provenance = (*cleared.notes, *carried)
    used = _examples(root, examined, names, final, found_captions.attributes, words)
    if masks.masks:
        used = tuple(e._replace(mask=masks.masks.get(e.name)) for e in used)
    described = card or DatasetCard()
    said = (*read.notes, *read.facts), caption_checks.remarks(used, words)
    return Audit(
        root=root,
        files=files,
        captions=len(found_captions.files) + prepared,
        ignored=ignored,
        used=used,
        rejected=tuple(rejected),
        notes=(
            *_changes(names, examined.infos, rules.background),
            *provenance,
            *(CaptionNote("", text) for text in said[0]),
            *(*beside.notes, *masks.notes, *final.notes),
            *(CaptionNote("", text) for text in said[1]),
        ),
        problems=(
            *(*_emptiness(path, names, rejected), *found_captions.problems),
            *(*beside.problems, *masks.problems, *read.problems, *final.problems),
        ),
        wordless=final.wordless,
        caption_source=final.source,
        infos=examined.infos,
        card=described.model_copy(
            update={"trigger": words.trigger, "class_word": words.class_word, "kind": words.shown or described.kind}
        ),
        prepared=prepared,
        provenance=provenance,
        pixels=examined.pixels,
        understood=read.notes,
        asked={} if prepared else _asked(words, rules),
        masks=beside.mask_files,
        looks=examined.looks,
    )


def _find(root: Path, names: Sequence[str]) -> FoundCaptions:
    """What files say of pictures: captions and licences."""
    licences = licence_files.find_licences(root, names)
    rest = [name for name in names if not name.lower().endswith(licence_files.SIDECAR)]
    return licences.beside(caption_files.find_captions(root, rest))


def _rights(asked: Rights, card: DatasetCard | None) -> Rights:
    """What is asked of licences, and holds for pictures without one: now, else when the dataset was prepared."""
    if card is None:
        return asked
    return Rights(asked.license or card.license, asked.author or card.author, asked.required or card.require_license)


def _carried(
    rules: Rules, names: Sequence[str], examined: Examined, found: FoundCaptions, words: CaptionWords, cleared: Cleared
) -> Generator[Event, None, tuple[FoundCaptions, list[CaptionNote]]]:
    """The captions with what licences were cleared, and with those of an earlier dataset."""
    found = found._replace(attributes=cleared.attributes)
    if rules.captions_of is None:
        return found, []
    report = yield from auditing(rules.captions_of, CaptionWords(allow_uncaptioned=True), Rules())
    if report.problems:
        raise DataError(*complaint(rules.captions_of, report))
    before = CaptionWords(report.card.trigger, report.card.class_word)
    earlier = carried_captions.Earlier(rules.captions_of, report.used, report.pixels, before)
    return carried_captions.carry_over(earlier, names, examined.digests, examined.pixels, found, words)


def _asked(words: CaptionWords, rules: Rules) -> dict[str, object]:
    """What is not as it is without a word."""
    usual: dict[str, object] = {"captions_from": "auto", "folder_names": "auto", "caption_lines": "each"}
    given = {**words._asdict(), "folder_names": rules.folder_names}
    return {name: value for name, value in given.items() if value and value != usual.get(name)}


def _words_of(path: Path, card: DatasetCard, asked: CaptionWords) -> CaptionWords:
    """The words that the dataset was prepared with. Raises DataError: the caller asks for others."""
    trigger = _agreed(path, "trigger", asked.trigger, card.trigger)
    class_word = _agreed(path, "class word", asked.class_word, card.class_word)
    allowed = asked.allow_uncaptioned or card.allow_uncaptioned
    return CaptionWords(trigger, class_word, card.template, card.kind, allow_uncaptioned=allowed)


def _examples(
    root: Path, examined: Examined, names: Sequence[str], final: FinalCaptions, attributes: Mapping[str, Attributes],
    words: CaptionWords,
) -> tuple[Example, ...]:  # fmt: skip
    used = []
    for name in names:
        caption, origin = final.captions[name], final.origins[name]
        said = () if origin == "written" else wordings(caption, origin, words)
        shown = said if len(said) > 1 else ()
        size, more = examined.infos[name].size, final.more.get(name, ())
        shown = tuple(dict.fromkeys((*(shown or (caption,)), *more))) if more else shown
        used.append(
            Example(
                root / name, name, caption, examined.digests[name], size,
                origin=origin, wordings=shown, attributes=attributes.get(name, NO_ATTRIBUTES)._replace(captions=more),
            )
        )  # fmt: skip
    return tuple(used)


def _changes(names: Sequence[str], infos: Mapping[str, ImageInfo], background: Colour) -> list[CaptionNote]:
    """What is done to each picture before training."""
    known: dict[tuple[ImageInfo, str], list[str]] = {}
    found = []
    for name in names:
        kind = infos[name], posixpath.splitext(name)[1]
        if kind not in known:
            known[kind] = decode.notes(*kind, background)
        found += [CaptionNote(name, text) for text in known[kind]]
    return found


def _card(root: Path) -> DatasetCard | None:
    """dataset.toml, or None for a raw folder."""
    file = root / CARD
    if not reading.is_file(file):
        return None
    hint = "prepare the dataset again"
    try:
        return DatasetCard.model_validate(reading.read_toml(file, DataError, hint))
    except ValidationError as e:
        wrong = ", ".join(".".join(map(str, error["loc"])) for error in e.errors(include_url=False))
        raise DataError(f"{file}: not a dataset.toml of this version (wrong: {wrong})", hint) from e


def _agreed(path: Path, name: str, asked: str | None, prepared: str | None) -> str | None:
    """Returns the word that the dataset was prepared with.

    Raises:
        DataError: the caller asks for another word.
    """
    if asked is not None and asked != prepared:
        has = f"with the {name} {prepared!r}" if prepared else f"without a {name}"
        raise DataError(
            f"the {name} is {asked!r}, but {path} was prepared {has}", "use that one, or prepare the source again"
        )
    return prepared


def _emptiness(path: Path, names: Sequence[str], rejected: Sequence[Rejected]) -> list[str]:
    if names:
        return []
    count = f"; all of its files were rejected ({len(rejected)})" if rejected else ""
    return [f"no images in {path}{count}"]


def complaint(path: Path, report: Audit) -> tuple[str, str, Action]:
    """(problem, hint, next step) for an audit that does not pass."""
    number = len(report.problems) + len(report.rejected)
    lines = [*report.problems, *(f"{r.file}: {r.reason}: {r.detail}" for r in report.rejected[:MOST_NAMED])]
    if number > len(lines):
        lines.append(f"and {number - len(lines)} more")
    count = "1 problem" if number == 1 else f"{number} problems"
    return f"{path}: {count}\n  " + "\n  ".join(lines), *next_step(path, report)


def next_step(path: Path, report: Audit) -> tuple[str, Action]:
    """What to do about an audit that does not pass, for whoever checks, prepares or trains."""
    if not report.problems:
        step = action("prepare", source=path, out="DIR", **report.asked)
        return "remove these files, or prepare a dataset without them", step
    words = dict(report.asked)
    if len(report.problems) + len(report.rejected) > 1:
        return "correct each problem above, then check again", action("check", path=path, **words)
    if report.wordless:
        words = {"trigger": "sks", "class_word": "mug"} | words
        return "check again with your own trigger and class word, such as", action("check", path=path, **words)
    return "correct this problem, then check again", action("check", path=path, **words)
