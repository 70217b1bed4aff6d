"""The audit of a dataset folder: every file accounted for, every image with its final caption.

The identity, by counting: files = seen + captions + masks + ignored, and seen = used + rejected. `captions` are the
sidecars that belong to an image, the metadata tables and dataset.toml; `ignored` are hidden and system files, each
named.
"""

import posixpath
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from finetune import reading
from finetune.choices import CaptionLines, CaptionsFrom, FolderNames
from finetune.data import conventions, examine, folder
from finetune.data.attributes import NO_ATTRIBUTES, Attributes
from finetune.data.companions import Companions, companions_in
from finetune.data.conventions import AsMeant
from finetune.data.examine import Twins
from finetune.data.example import CARD, DatasetCard, Example
from finetune.data.folder import MAX_ASPECT, MIN_SIDE_PX, Rejected, Rules, Tree
from finetune.data.images import decode
from finetune.data.images.colours import WHITE, Colour
from finetune.data.images.decode import ImageInfo
from finetune.data.masks import Looked, look_at_masks
from finetune.data.quality import caption_checks
from finetune.data.record import Seen
from finetune.data.rights import licence_files
from finetune.data.rights.licences import Rights
from finetune.data.rights.provenance import Cleared, LicenceSum, clear_licences, sums
from finetune.data.text import caption_files, captions, carried_captions, folder_files
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
    pictures: Mapping[str, Seen]
    """What was found out of the file of each used image, by name."""
    card: DatasetCard
    prepared: bool
    provenance: tuple[CaptionNote, ...]
    """Those of the notes that are on licences, and on captions of an earlier dataset."""
    understood: tuple[str, ...] = ()
    """What was made of files and folders that are as other trainers have them; among the notes, too."""
    asked: Mapping[str, object] = field(default_factory=dict)
    """The options that the same call has again; of a prepared dataset none."""
    masks: int = 0
    """The number of files that are masks of images."""

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
    def shown(self) -> list[str]:
        """Each text that training shows with an image: its caption, or its wordings by turns."""
        return [text for e in self.used for text in e.wordings or (e.caption,)]

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
    place = _open(path, words, rules)
    tree = folder.walk(place.root)
    files = _sort_out(place, tree)
    asks = bool(_rights(place.rules.rights, place.card).required)
    refused = {one.file for one in _clear(place, files.pictures, files.captions).refused} if asks else ()
    pictures = yield from _look(place, files, tree, twins, refused)
    counts = _Counts.of(tree, files.captions, place)
    del tree  # of very many files it takes more than what follows
    cleared = _clear(place, pictures.names, files.captions)
    pictures = pictures.without(cleared.refused)
    found, carried = yield from _carry_over(place, pictures, files.captions._replace(attributes=cleared.attributes))
    del files
    read, final = _caption(place, pictures.names, found)
    return _report(place, counts, pictures, read, final, (*cleared.notes, *carried))


# --- its stages -----------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """A folder, and what it is audited with."""

    path: Path
    """As whoever asks calls it."""
    root: Path
    card: DatasetCard | None
    """Of a prepared dataset."""
    words: CaptionWords
    rules: Rules


class _Files(NamedTuple):
    """The files of a folder by what they are for."""

    captions: FoundCaptions
    pictures: list[str]
    beside: Companions


class _Counts(NamedTuple):
    files: int
    captions: int
    ignored: tuple[str, ...]

    @classmethod
    def of(cls, tree: Tree, found: FoundCaptions, place: _Place) -> "_Counts":
        number = len(tree.files) + len(tree.ignored) + len(tree.rejected)
        return cls(number, len(found.files) + (place.card is not None), tuple(tree.ignored))


class _Pictures(NamedTuple):
    """The pictures that can be used, by name, in order; their masks; and what is rejected."""

    names: list[str]
    seen: dict[str, Seen]
    beside: Companions
    masks: Looked
    rejected: list[Rejected]

    def without(self, refused: Sequence[Rejected]) -> "_Pictures":
        gone = {one.file for one in refused}
        return self._replace(names=[n for n in self.names if n not in gone], rejected=[*self.rejected, *refused])


def _open(path: Path, words: CaptionWords, rules: Rules) -> _Place:
    root = folder.locate_images(path)
    card = prepared_card(root)
    return _Place(path, root, card, words if card is None else _words_of(path, card, words), rules)


def _sort_out(place: _Place, tree: Tree) -> _Files:
    prepared = place.card is not None
    found = _find(place.root, [name for name in tree.files if name != CARD or not prepared], prepared)
    others = found.files | {r.file for r in found.orphans} | ({CARD} if prepared else set())
    pictures = [name for name in tree.files if name not in others]
    beside = companions_in(place.root, pictures, found, prepared)
    if accompanying := beside.files:
        pictures = [name for name in pictures if name not in accompanying]
    return _Files(found, pictures, beside)


def _look(
    place: _Place, files: _Files, tree: Tree, twins: Twins | None, refused: Collection[str]
) -> Generator[Event, None, _Pictures]:
    """refused: pictures that will not be used, of which no other is a duplicate."""
    examined = yield from examine.examine(place.root, files.pictures, tree, place.rules, twins, refused)
    beside = files.beside.of(examined.seen)
    masks = yield from look_at_masks(place.root, beside.masks, examined.seen, tree, place.rules)
    rejected = [*tree.rejected, *files.captions.orphans, *examined.rejected, *beside.rejected]
    names = sorted(examined.seen, key=folder.natural) if tree.links else list(examined.seen)
    return _Pictures(names, examined.seen, beside, masks, rejected)


def _clear(place: _Place, names: Sequence[str], found: FoundCaptions) -> Cleared:
    own = bool(place.card and place.card.require_license)
    return clear_licences(names, found.attributes, _rights(place.rules.rights, place.card), own)


def _carry_over(
    place: _Place, pictures: _Pictures, found: FoundCaptions
) -> Generator[Event, None, tuple[FoundCaptions, list[CaptionNote]]]:
    """The captions with those of an earlier dataset, where one is named."""
    if (earlier := place.rules.captions_of) is None:
        return found, []
    report = yield from auditing(earlier, CaptionWords(allow_uncaptioned=True), Rules())
    if report.problems:
        raise DataError(*complaint(earlier, report))
    before = CaptionWords(report.card.trigger, report.card.class_word)
    known = carried_captions.Earlier(earlier, report.used, report.pictures, before)
    return carried_captions.carry_over(known, pictures.names, pictures.seen, found, place.words)


def _caption(place: _Place, names: Sequence[str], found: FoundCaptions) -> tuple[AsMeant, FinalCaptions]:
    if place.card is not None:
        return conventions.of_prepared(found), captions.final_captions(names, found, place.words)
    read = conventions.of_raw(place.root, names, found, place.words, place.rules)
    return read, captions.compose(names, read.captions, place.words)


def _report(
    place: _Place, counts: _Counts, pictures: _Pictures, read: AsMeant, final: FinalCaptions,
    provenance: tuple[CaptionNote, ...],
) -> Audit:  # fmt: skip
    words, names, described = place.words, pictures.names, place.card or DatasetCard()
    used = _examples(place.root, pictures, final, read.captions.attributes, words)
    beside, masks = pictures.beside, pictures.masks
    tellers = (read.captions, beside, masks, read, final)
    notes = (
        *_changes(names, pictures.seen, place.rules.background),
        *provenance,
        *_on_all(*read.notes, *read.facts),
        *(*beside.notes, *masks.notes, *final.notes),
        *_on_all(*caption_checks.remarks(used, words)),
    )
    return Audit(
        root=place.root,
        files=counts.files,
        captions=counts.captions,
        ignored=counts.ignored,
        used=used,
        rejected=tuple(sorted(pictures.rejected)),
        notes=notes,
        problems=(
            *_emptiness(place.path, names, pictures.rejected),
            *(problem for teller in tellers for problem in teller.problems),
        ),
        wordless=final.wordless,
        caption_source=final.source,
        pictures=pictures.seen,
        card=described.model_copy(
            update={"trigger": words.trigger, "class_word": words.class_word, "kind": words.shown or described.kind}
        ),
        prepared=place.card is not None,
        provenance=provenance,
        understood=read.notes,
        asked={} if place.card is not None else _asked(words, place.rules),
        masks=beside.mask_files,
    )


def _on_all(*texts: str) -> Iterator[CaptionNote]:
    return (CaptionNote("", text) for text in texts)


def _find(root: Path, names: Sequence[str], prepared: bool) -> FoundCaptions:
    """What files say of pictures: captions and licences, and of a folder that is not prepared what others' files do."""
    licences = licence_files.find_licences(root, names)
    rest = [n for n in names if not n.lower().endswith(licence_files.SIDECAR) and n not in licences.files]
    if prepared:
        return licences.beside(caption_files.find_captions(root, rest))
    others = folder_files.read_folder_files(root, rest)
    rest = [n for n in rest if n not in others.files]
    return others.added_to(licences.beside(caption_files.find_captions(root, rest)))


def _rights(asked: Rights, card: DatasetCard | None) -> Rights:
    """What is asked of licences, and holds for pictures without one: now, else when the dataset was prepared."""
    if card is None:
        return asked
    return Rights(asked.license or card.license, asked.author or card.author, asked.required or card.require_license)


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
    root: Path, pictures: _Pictures, final: FinalCaptions, attributes: Mapping[str, Attributes], words: CaptionWords
) -> tuple[Example, ...]:
    used = []
    for name in pictures.names:
        caption, origin = final.captions[name], final.origins[name]
        said = () if origin == "written" else wordings(caption, origin, words)
        shown = said if len(said) > 1 else ()
        seen, more = pictures.seen[name], final.more.get(name, ())
        shown = tuple(dict.fromkeys((*(shown or (caption,)), *more))) if more else shown
        told = attributes.get(name, NO_ATTRIBUTES)
        told = told if told.captions == more else told._replace(captions=more)
        used.append(
            Example(
                root / name, name, caption, seen.digest, seen.info.size,
                origin=origin, wordings=shown, attributes=told, mask=pictures.masks.masks.get(name),
            )
        )  # fmt: skip
    return tuple(used)


def _changes(names: Sequence[str], pictures: Mapping[str, Seen], background: Colour) -> list[CaptionNote]:
    """What is done to each picture before training."""
    known: dict[tuple[ImageInfo, str], list[str]] = {}
    found = []
    for name in names:
        kind = pictures[name].info, posixpath.splitext(name)[1]
        if kind not in known:
            known[kind] = decode.notes(*kind, background)
        found += [CaptionNote(name, text) for text in known[kind]]
    return found


def prepared_card(root: Path) -> DatasetCard | None:
    """dataset.toml, or None for a raw folder; another trainer's file of that name is none."""
    file = root / CARD
    if not reading.is_file(file):
        return None
    hint = "prepare the dataset again"
    told = reading.read_toml(file, DataError, hint)
    if folder_files.trainer_of(told):  # others call their settings so
        return None
    try:
        return DatasetCard.model_validate(told)
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
