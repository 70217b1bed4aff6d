"""A dataset on disk: audit any folder of images, prepare it, read it.

The identity, by counting: files = seen + captions + ignored, and seen = used + rejected. `captions` are the sidecars
that belong to an image, the metadata tables and dataset.toml; `ignored` are hidden and system files, each named.
"""

import hashlib
import json
import posixpath
import re
import shutil
import tempfile
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune import __version__
from finetune.data import captions, decode, diagnose, folder
from finetune.data.buckets import Bucket, Size, choose_bucket, crop_loss, enlargement
from finetune.data.captions import TABLE, CaptionSource, Coverage, Kind, Note, Words
from finetune.data.decode import WHITE, Colour, Facts
from finetune.data.folder import MAX_ASPECT, MIN_SIDE_PX, Rejected, Rules
from finetune.errors import Action, DataError, RunError, action

CARD = "dataset.toml"
SPLIT_WORDS = "training|train|validation|valid|val|dev|testing|test|evaluation|eval"
"""Names by which `datasets` splits a folder: of a.jpg and train-1.jpg it would load one and drop the other."""


class Example(NamedTuple):
    """One image to train on."""

    path: Path
    name: str
    """posix path relative to the dataset's root: the sample's id"""
    caption: str
    """the final text, as trained on"""
    digest: str
    """SHA-256 of the file's bytes"""
    size: Size
    """after orientation"""
    role: Literal["instance", "prior"] = "instance"
    weight: float = 1.0
    controls: "tuple[Example, ...]" = ()
    """pictures that an editing base is shown beside the caption; their names are no other's"""


class Card(BaseModel):
    """dataset.toml: what a prepared dataset is, and what preparing it left out or changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    tool: str = f"finetune {__version__}"
    trigger: str | None = None
    class_word: str | None = None
    kind: Kind = ""
    license: str = ""
    source: str = ""
    background: str = "white"
    captions: CaptionSource = "none"
    images: int = 0
    seen: int = 0
    changes: dict[str, int] = {}
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True)
class Dataset:
    root: Path
    examples: tuple[Example, ...]
    trigger: str | None
    class_word: str | None
    card: Card
    prepared: bool

    @property
    def kind(self) -> Kind:
        return self.card.kind

    @property
    def source(self) -> str:
        return self.card.source

    @property
    def license(self) -> str:
        return self.card.license

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the sorted (digest, caption, controls...): the same images and captions, wherever they lie."""
        pairs = sorted((e.digest, e.caption, *(c.digest for c in e.controls)) for e in self.examples)
        return hashlib.sha256(json.dumps(pairs, ensure_ascii=False).encode()).hexdigest()

    @property
    def coverage(self) -> Coverage:
        return captions.coverage([e.caption for e in self.examples], self.trigger)


@dataclass(frozen=True)
class Audit:
    root: Path
    files: int
    """all that lies in the folder tree"""
    captions: int
    """files that carry captions or describe the dataset"""
    ignored: tuple[str, ...]
    """hidden and system files"""
    used: tuple[Example, ...]
    rejected: tuple[Rejected, ...]
    notes: tuple[Note, ...]
    problems: tuple[str, ...]
    """what makes the dataset as a whole unusable"""
    wordless: bool
    """whether one of them is that captions are missing, and the words to write them with"""
    caption_source: CaptionSource
    facts: Mapping[str, Facts]
    """of each used image, by name"""
    card: Card
    prepared: bool

    @property
    def seen(self) -> int:
        return self.files - self.captions - len(self.ignored)

    @property
    def coverage(self) -> Coverage:
        return captions.coverage([e.caption for e in self.used], self.card.trigger)


class Placed(NamedTuple):
    """An example and the size that it will be trained at."""

    example: Example
    bucket: Bucket
    crop_loss: float
    """share of the area cut away, in [0, 1)"""
    enlargement: float
    """above 1 the image is upscaled"""


# --- the three verbs ------------------------------------------------------------------------------------------------


def audit(
    path: Path,
    *,
    trigger: str | None = None,
    class_word: str | None = None,
    template: str | None = None,
    allow_uncaptioned: bool = False,
    min_side_px: int = MIN_SIDE_PX,
    max_aspect: float = MAX_ASPECT,
    background: Colour = WHITE,
) -> Audit:
    """Every file of the folder accounted for, every image decoded in full, every caption as it will be trained on.

    Raises:
        DataError: there is no such folder, or its dataset.toml is broken or contradicts the trigger or class word.
    """
    words = captions.spoken(trigger, class_word, template)
    return _audit(path, words, allow_uncaptioned, Rules(min_side_px, max_aspect, background))


def prepare(
    source: Path,
    out: Path,
    *,
    trigger: str | None = None,
    class_word: str | None = None,
    kind: Kind = "",
    template: str | None = None,
    license: str = "",
    source_note: str = "",
    background: Colour = WHITE,
    allow_uncaptioned: bool = False,
    min_side_px: int = MIN_SIDE_PX,
    max_aspect: float = MAX_ASPECT,
) -> Dataset:
    """An imagefolder with final captions and dataset.toml at `out`, which is whole or not there at all.

    Images that need no change are copied byte for byte, others written as PNG. The source is only read.
    What was rejected is in the result's card.

    Raises:
        DataError: the source has problems, or `out` is not empty or lies inside the source.
        RunError: `out` cannot be written.
    """
    _refuse_out(folder.locate(source), out)
    words = captions.spoken(trigger, class_word, template or captions.default_template(kind, class_word))
    found = _audit(source, words, allow_uncaptioned, Rules(min_side_px, max_aspect, background))
    if found.problems:
        raise DataError(*_complaint(source, found))
    card = found.card.model_copy(
        update={
            "kind": kind or found.card.kind,
            "license": license or found.card.license,
            "source": source_note or found.card.source,
            "background": decode.colour_name(background),
        }
    )
    _write(found, card, out, background)
    return read(out)


def read(
    path: Path,
    *,
    trigger: str | None = None,
    class_word: str | None = None,
    template: str | None = None,
    allow_uncaptioned: bool = False,
) -> Dataset:
    """A prepared folder (image headers and digests are read), or a raw one, audited in full.

    Raises:
        DataError: names every problem, and every file that cannot be used: none is left out in silence.
    """
    prepared = (folder.locate(path) / CARD).is_file()
    words = captions.spoken(trigger, class_word, template)
    found = _audit(path, words, allow_uncaptioned, Rules(decode=not prepared))
    if found.problems or found.rejected:
        raise DataError(*_complaint(path, found))
    return Dataset(found.root, found.used, found.card.trigger, found.card.class_word, found.card, prepared)


def place(examples: Sequence[Example], buckets: Sequence[Bucket]) -> list[Placed]:
    """Each example with its bucket."""
    placed = []
    for example in examples:
        bucket = choose_bucket(example.size, buckets)
        loss, scale = crop_loss(example.size, bucket), enlargement(example.size, bucket)
        placed.append(Placed(example, bucket, loss, scale))
    return placed


# --- audit ----------------------------------------------------------------------------------------------------------


def _audit(path: Path, words: Words, allow_uncaptioned: bool, rules: Rules) -> Audit:
    root = folder.locate(path)
    card = _card(root)
    prepared = card is not None
    if card is not None:
        trigger = _agreed(path, "trigger", words.trigger, card.trigger)
        words = Words(trigger, _agreed(path, "class word", words.class_word, card.class_word))
    tree = folder.walk(root)
    written = captions.find(root, [name for name in tree.files if name != CARD])
    apart = written.files | {r.file for r in written.orphans} | {CARD}
    examined = folder.examine(root, [name for name in tree.files if name not in apart], rules)
    rejected = sorted([*tree.rejected, *written.orphans, *examined.rejected])
    names = sorted(examined.facts, key=folder.natural)
    if prepared:
        final = captions.settle(names, written, words)
    else:
        final = captions.compose(names, written, words, allow_uncaptioned)
    used = tuple(
        Example(root / name, name, final.captions[name], examined.digests[name], examined.facts[name].size)
        for name in names
    )
    done = [Note(n, text) for n in names for text in decode.notes(examined.facts[n], Path(n).suffix, rules.background)]
    base = card or Card()
    return Audit(
        root=root,
        files=len(tree.files) + len(tree.ignored) + len(tree.rejected),
        captions=len(written.files) + prepared,
        ignored=tuple(tree.ignored),
        used=used,
        rejected=tuple(rejected),
        notes=(*done, *final.notes),
        problems=(*_emptiness(path, names, rejected), *written.problems, *final.problems),
        wordless=final.wordless,
        caption_source=final.source,
        facts=examined.facts,
        card=base.model_copy(update={"trigger": words.trigger, "class_word": words.class_word}),
        prepared=prepared,
    )


def _card(root: Path) -> Card | None:
    """dataset.toml, or None for a raw folder."""
    file = root / CARD
    if not file.is_file():
        return None
    hint = "prepare the dataset again"
    try:
        return Card.model_validate(tomllib.loads(file.read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise DataError(f"cannot read {file}: {e}", hint) from e
    except ValidationError as e:
        wrong = ", ".join(".".join(map(str, error["loc"])) for error in e.errors(include_url=False))
        raise DataError(f"{file}: not a dataset.toml of this version (wrong: {wrong})", hint) from e


def _agreed(path: Path, name: str, asked: str | None, prepared: str | None) -> str | None:
    """The prepared dataset's word.

    Raises:
        DataError: another was asked for.
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


def _complaint(path: Path, found: Audit) -> tuple[str, str, Action]:
    """(problem, hint, next step) for an audit that does not pass."""
    lines = [*found.problems, *(f"{r.file}: {r.reason}: {r.detail}" for r in found.rejected)]
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return f"{path}: {count}\n  " + "\n  ".join(lines), *next_step(path, found)


def next_step(path: Path, found: Audit) -> tuple[str, Action]:
    """What to do about an audit that does not pass, for whoever checks, prepares or trains."""
    if not found.problems:
        return "remove these files, or prepare a dataset without them", action("prepare", source=path, out="DIR")
    words = {} if found.prepared else {"trigger": found.card.trigger, "class_word": found.card.class_word}
    if len(found.problems) + len(found.rejected) > 1:
        return "correct each problem above, then check again", action("check", path=path, **words)
    if found.wordless:
        words = {name: word or example for (name, word), example in zip(words.items(), ("sks", "mug"), strict=True)}
        return "check again with your own words (keys of [data] in a recipe)", action("check", path=path, **words)
    return "put that right, then check again", action("check", path=path, **words)


# --- writing --------------------------------------------------------------------------------------------------------


def _refuse_out(source: Path, out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty", "choose another `out`, or remove it first")
    if out.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{out} lies inside {source}, which is not to be changed", "choose an `out` outside of it")


def _write(found: Audit, card: Card, out: Path, background: Colour) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", ignore_cleanup_errors=True) as aside:
            made = Path(aside) / out.name
            _fill_folder(found, card, made, background)
            if out.is_dir():
                out.rmdir()
            made.rename(out)
    except OSError as e:
        raise RunError(f"cannot write {out}: {e.strerror or e}", "free some space, or choose another `out`") from e


def _fill_folder(found: Audit, card: Card, root: Path, background: Colour) -> None:
    import tomlkit

    names = _prepared_names([(e.name, found.facts[e.name]) for e in found.used])
    rows = []
    for example in found.used:
        target = root / names[example.name]
        target.parent.mkdir(parents=True, exist_ok=True)
        if decode.plain(found.facts[example.name]):
            shutil.copyfile(example.path, target)
        else:
            decode.open_rgb(example.path, background).save(target, "PNG", compress_level=3)
        rows.append({"file_name": names[example.name], "text": example.caption})
    (root / TABLE).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    card = card.model_copy(
        update={
            "captions": found.caption_source,
            "images": len(found.used),
            "seen": found.seen,
            "changes": dict(Counter(note.text for note in found.notes if note.file)),
            "rejected": found.rejected,
        }
    )
    tables = card.model_dump(mode="json", exclude_none=True)
    tables["rejected"] = [r._asdict() for r in found.rejected]
    (root / CARD).write_text(tomlkit.dumps({k: v for k, v in tables.items() if v not in ([], {})}), encoding="utf-8")


def _prepared_names(files: Sequence[tuple[str, Facts]]) -> dict[str, str]:
    """Source name -> name in the prepared folder: the same where it can be, unique even where case does not count."""
    given: dict[str, str] = {}
    taken: set[str] = set()
    for name, facts in files:
        *folders, stem = posixpath.splitext(name.removeprefix("images/"))[0].split("/")
        suffix = posixpath.splitext(name)[1].lower()
        if not decode.plain(facts):
            suffix = ".png"
        elif suffix not in diagnose.SUFFIXES[facts.format] or facts.format == "MPO":
            suffix = diagnose.SUFFIXES[facts.format][0]
        path = "/".join(["images", *map(_loadable, [*folders, stem])])
        wanted, count = path + suffix, 1
        while unicodedata.normalize("NFC", wanted).casefold() in taken:
            count += 1
            wanted = f"{path}-{count}{suffix}"
        taken.add(unicodedata.normalize("NFC", wanted).casefold())
        given[name] = wanted
    return given


def _loadable(part: str) -> str:
    """A file's stem or a folder's name, spelt so that `datasets` neither skips it nor takes it for a split."""
    return re.sub(rf"(?<![^-._ 0-9])({SPLIT_WORDS})(?![^-._ 0-9])", r"\1x", part.lstrip("_") or "images")
