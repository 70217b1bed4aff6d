"""The audit of a dataset folder: every file accounted for, every image with its final caption.

The identity, by counting: files = seen + captions + ignored, and seen = used + rejected. `captions` are the sidecars
that belong to an image, the metadata tables and dataset.toml; `ignored` are hidden and system files, each named.
"""

import posixpath
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from finetune import reading
from finetune.choices import CaptionsFrom
from finetune.data import caption_checks, caption_files, captions, decode, examine, folder
from finetune.data.attributes import NO_ATTRIBUTES, Attributes
from finetune.data.caption_files import CaptionSource
from finetune.data.captions import CaptionNote, Coverage, FinalCaptions
from finetune.data.colours import WHITE, Colour
from finetune.data.decode import ImageInfo
from finetune.data.examine import Examined
from finetune.data.example import CARD, DatasetCard, Example
from finetune.data.folder import MAX_ASPECT, MIN_SIDE_PX, Rejected, Rules
from finetune.data.wording import CaptionOrigin, CaptionWords, DatasetKind, wordings
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
    """One of the problems is that there are neither captions nor words to write them with."""
    caption_source: CaptionSource
    infos: Mapping[str, ImageInfo]
    """The file facts of each used image, by name."""
    card: DatasetCard
    prepared: bool
    looks: Mapping[str, bytes] = field(default_factory=dict)
    """How each picture that was decoded looks, by name, as `looks.measure_looks` packs it."""

    @property
    def seen(self) -> int:
        return self.files - self.captions - len(self.ignored)

    @property
    def origins(self) -> dict[CaptionOrigin, int]:
        """How many captions a person, a file's name, a model or the template gave."""
        return dict(Counter(e.origin for e in self.used))

    @property
    def coverage(self) -> Coverage:
        return captions.coverage([e.caption for e in self.used], self.card.trigger)


def audit(
    path: Path,
    *,
    trigger: str | None = None,
    class_word: str | None = None,
    template: str | None = None,
    kind: DatasetKind = "",
    captions_from: CaptionsFrom = "auto",
    allow_uncaptioned: bool = False,
    min_side_px: int = MIN_SIDE_PX,
    max_aspect: float = MAX_ASPECT,
    background: Colour = WHITE,
) -> Audit:
    """Accounts for every file of the folder, decodes every image in full and writes every final caption.

    Raises:
        DataError: there is no such folder, or its dataset.toml is broken or contradicts the trigger or class word.
    """
    words = captions.clean_words(trigger, class_word, template, kind, captions_from, allow_uncaptioned)
    return audit_folder(path, words, Rules(min_side_px, max_aspect, background))


def audit_folder(path: Path, words: CaptionWords, rules: Rules) -> Audit:
    """Audits a folder; an image is decoded in full where the rules say so."""
    return unheard(auditing(path, words, rules))


def auditing(path: Path, words: CaptionWords, rules: Rules) -> Generator[Event, None, Audit]:
    """`audit_folder`, telling how far it is where that takes long."""
    root = folder.locate_images(path)
    card = _card(root)
    prepared = card is not None
    if card is not None:
        words = _words_of(path, card, words)
    tree = folder.walk(root)
    found_captions = caption_files.find_captions(root, [name for name in tree.files if name != CARD])
    caption_carriers = found_captions.files | {r.file for r in found_captions.orphans} | {CARD}
    images = [name for name in tree.files if name not in caption_carriers]
    examined = yield from examine.examine(root, images, tree, rules)
    rejected = sorted([*tree.rejected, *found_captions.orphans, *examined.rejected])
    names = list(examined.infos)
    if tree.links:
        names.sort(key=folder.natural)
    ignored, files = tuple(tree.ignored), len(tree.files) + len(tree.ignored) + len(tree.rejected)
    del tree, images, caption_carriers  # of very many files they take more than what follows
    if prepared:
        final = captions.final_captions(names, found_captions, words)
    else:
        final = captions.compose(names, found_captions, words)
    used = _examples(root, examined, names, final, found_captions.attributes, words)
    described = card or DatasetCard()
    return Audit(
        root=root,
        files=files,
        captions=len(found_captions.files) + prepared,
        ignored=ignored,
        used=used,
        rejected=tuple(rejected),
        notes=(
            *_changes(names, examined.infos, rules.background),
            *final.notes,
            *(CaptionNote("", text) for text in caption_checks.remarks(used, words)),
        ),
        problems=(*_emptiness(path, names, rejected), *found_captions.problems, *final.problems),
        wordless=final.wordless,
        caption_source=final.source,
        infos=examined.infos,
        card=described.model_copy(
            update={"trigger": words.trigger, "class_word": words.class_word, "kind": words.shown or described.kind}
        ),
        prepared=prepared,
        looks=examined.looks,
    )


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
        size = examined.infos[name].size
        used.append(
            Example(
                root / name, name, caption, examined.digests[name], size,
                origin=origin, wordings=shown, attributes=attributes.get(name, NO_ATTRIBUTES),
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
    count = f"; each of its {len(rejected)} files was rejected" if rejected else ""
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
        return "remove these files, or prepare a dataset without them", action("prepare", source=path, out="DIR")
    words = {} if report.prepared else {"trigger": report.card.trigger, "class_word": report.card.class_word}
    if len(report.problems) + len(report.rejected) > 1:
        return "correct each problem above, then check again", action("check", path=path, **words)
    if report.wordless:
        words = {name: word or example for (name, word), example in zip(words.items(), ("sks", "mug"), strict=True)}
        return "check again with your own words (keys of [data] in a recipe)", action("check", path=path, **words)
    return "correct this problem, then check again", action("check", path=path, **words)
