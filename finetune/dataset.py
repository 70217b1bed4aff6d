"""A dataset on disk: audit any folder of images, prepare it, read it; captions and the trigger.

The identity, by counting: files = seen + captions + ignored, and seen = used + rejected. `captions` are the sidecars
that belong to an image, the metadata tables and dataset.toml; `ignored` are hidden and system files, each named.
"""

import csv
import hashlib
import io
import json
import os
import posixpath
import re
import shutil
import stat
import tempfile
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune import __version__, images, shipped
from finetune.errors import DataError, RunError
from finetune.images import WHITE, Bucket, Colour, Facts, Reason, Size, Unusable

Kind = Literal["", "product", "style"]
CaptionSource = Literal["sidecars", "metadata.jsonl", "metadata.csv", "template", "none"]

CARD = "dataset.toml"
TABLE = "metadata.jsonl"
TABLES = (TABLE, "metadata.csv")
SIDECARS = (".txt", ".caption")
MIN_SIDE_PX = 32
MAX_ASPECT = 4.0
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
SYSTEM_FOLDERS = {"__macosx"}
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


class Rejected(NamedTuple):
    file: str
    reason: Reason
    detail: str


class Note(NamedTuple):
    """Something done to, or worth knowing of, one file; of the whole dataset when `file` is empty."""

    file: str
    text: str


class Coverage(NamedTuple):
    """In how many of the captions the trigger occurs."""

    having: int
    of: int


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
        """SHA-256 over the sorted (digest, caption) pairs: the same images and captions, wherever they lie."""
        pairs = sorted((e.digest, e.caption) for e in self.examples)
        return hashlib.sha256(json.dumps(pairs, ensure_ascii=False).encode()).hexdigest()

    @property
    def coverage(self) -> Coverage:
        return coverage(self.examples, self.trigger)


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
        return coverage(self.used, self.card.trigger)


class Placed(NamedTuple):
    """An example and the size that it will be trained at."""

    example: Example
    bucket: Bucket
    crop_loss: float
    """share of the area cut away, in [0, 1)"""
    enlargement: float
    """above 1 the image is upscaled"""


class Words(NamedTuple):
    """What captions are written with."""

    trigger: str | None = None
    class_word: str | None = None
    template: str | None = None


class Rules(NamedTuple):
    """Which files are used, and how deep they are looked into."""

    allow_uncaptioned: bool = False
    min_side_px: int = MIN_SIDE_PX
    max_aspect: float = MAX_ASPECT
    background: Colour = WHITE
    decode: bool = True


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
    words = _spoken(trigger, class_word, template)
    return _audit(path, words, Rules(allow_uncaptioned, min_side_px, max_aspect, background))


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
    _refuse_out(_folder(source), out)
    words = _spoken(trigger, class_word, template or default_template(kind, class_word))
    found = _audit(source, words, Rules(allow_uncaptioned, min_side_px, max_aspect, background))
    if found.problems:
        raise DataError(*_complaint(source, found))
    card = found.card.model_copy(
        update={
            "kind": kind or found.card.kind,
            "license": license or found.card.license,
            "source": source_note or found.card.source,
            "background": images.colour_name(background),
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
    prepared = (_folder(path) / CARD).is_file()
    words = _spoken(trigger, class_word, template)
    found = _audit(path, words, Rules(allow_uncaptioned, decode=not prepared))
    if found.problems or found.rejected:
        raise DataError(*_complaint(path, found))
    return Dataset(found.root, found.used, found.card.trigger, found.card.class_word, found.card, prepared)


def place(examples: Sequence[Example], buckets: Sequence[Bucket]) -> list[Placed]:
    """Each example with its bucket."""
    placed = []
    for example in examples:
        bucket = images.choose_bucket(example.size, buckets)
        loss, scale = images.crop_loss(example.size, bucket), images.enlargement(example.size, bucket)
        placed.append(Placed(example, bucket, loss, scale))
    return placed


# --- captions and the trigger ---------------------------------------------------------------------------------------


def inject(caption: str, trigger: str | None, class_word: str | None) -> str:
    """The caption with the trigger in it: once, unless its author wrote it more often.

    `{trigger}` is replaced; a caption that has the trigger stays; else it goes before the first class word, else first.
    """
    if not trigger:
        return caption
    caption = caption.replace("{trigger}", trigger)
    if _word(trigger).search(caption):
        return caption
    spot = _word(class_word).search(caption) if class_word else None
    if spot is None:
        return f"{trigger}, {caption}" if caption else trigger
    end = spot.end() if _includes(trigger, class_word) else spot.start()
    return f"{caption[: spot.start()]}{trigger}{' ' if end == spot.start() else ''}{caption[end:]}"


def without_trigger(caption: str, trigger: str | None) -> str:
    """The caption as it would be of any other thing of the class; spaces and commas tidied."""
    if not trigger:
        return caption
    bare = _word(trigger).sub("", caption)
    bare = re.sub(r"\s+([,.;:!?])", r"\1", re.sub(r"\s+", " ", bare))
    return re.sub(r"(,\s*)+,", ",", bare).strip(" ,")


def fill(template: str, trigger: str | None, class_word: str | None) -> str:
    """`a photo of {trigger} {class_word}` with what is declared; a class word that the trigger has is not repeated."""
    spoken = "" if _includes(trigger, class_word) else class_word or ""
    return " ".join(template.replace("{trigger}", trigger or "").replace("{class_word}", spoken).split())


def default_template(kind: Kind, class_word: str | None) -> str:
    """The caption of images that have none."""
    if kind == "style":
        return f"{'{class_word}' if class_word else 'an image'} in {{trigger}} style"
    return "a photo of {trigger} {class_word}"


def mentions(caption: str, trigger: str | None) -> bool:
    """Whether the trigger occurs as a whole word, in any case."""
    return bool(trigger and _word(trigger).search(caption))


def coverage(examples: Sequence[Example], trigger: str | None) -> Coverage:
    """How many captions have the trigger as a whole word; 0 without a trigger."""
    having = sum(mentions(e.caption, trigger) for e in examples)
    return Coverage(having, len(examples))


def _word(word: str) -> re.Pattern[str]:
    """Matches it as a whole word in any case, as tokenizers that fold case see it."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def _includes(trigger: str | None, class_word: str | None) -> bool:
    return bool(trigger and class_word and f" {class_word} ".lower() in f" {trigger} ".lower())


def _spoken(trigger: str | None, class_word: str | None, template: str | None) -> Words:
    for name, word in (("trigger", trigger), ("class word", class_word), ("template", template)):
        if word is not None and not word.strip():
            raise DataError(f"the {name} is blank", "write a word, or leave it away")
    unknown = set(re.findall(r"\{(\w*)\}", template or "")) - {"trigger", "class_word"}
    if unknown:
        raise DataError(f"the template has {{{min(unknown)}}}", "it may have {trigger} and {class_word}")
    return Words(*(word and " ".join(word.split()) for word in (trigger, class_word, template)))


# --- audit ----------------------------------------------------------------------------------------------------------


class _Tree(NamedTuple):
    """All that lies under a root, by posix path relative to it."""

    files: list[str]
    """ordinary files, and links to such inside the root; links last"""
    ignored: list[str]
    rejected: list[Rejected]


class _Captions(NamedTuple):
    source: CaptionSource
    texts: dict[str, str]
    """image -> what was written for it, perhaps empty"""
    files: set[str]
    """those that carry captions"""
    orphans: list[Rejected]
    problems: list[str]


class _Examined(NamedTuple):
    facts: dict[str, Facts]
    digests: dict[str, str]
    rejected: list[Rejected]


class _Final(NamedTuple):
    captions: dict[str, str]
    source: CaptionSource
    notes: list[Note]
    problems: list[str]


def _audit(path: Path, words: Words, rules: Rules) -> Audit:
    root = _folder(path)
    card = _card(root)
    prepared = card is not None
    if card is not None:
        trigger = _agreed(path, "trigger", words.trigger, card.trigger)
        words = Words(trigger, _agreed(path, "class word", words.class_word, card.class_word))
    tree = _walk(root)
    captions = _find_captions(root, [name for name in tree.files if name != CARD])
    apart = captions.files | {r.file for r in captions.orphans} | {CARD}
    examined = _examine(root, [name for name in tree.files if name not in apart], rules)
    rejected = sorted([*tree.rejected, *captions.orphans, *examined.rejected])
    names = sorted(examined.facts, key=_natural)
    final = _settle(names, captions, words) if prepared else _compose(names, captions, words, rules)
    used = tuple(
        Example(root / name, name, final.captions[name], examined.digests[name], examined.facts[name].size)
        for name in names
    )
    done = [Note(n, text) for n in names for text in images.notes(examined.facts[n], Path(n).suffix, rules.background)]
    base = card or Card()
    return Audit(
        root=root,
        files=len(tree.files) + len(tree.ignored) + len(tree.rejected),
        captions=len(captions.files) + prepared,
        ignored=tuple(tree.ignored),
        used=used,
        rejected=tuple(rejected),
        notes=(*done, *final.notes),
        problems=(*_emptiness(path, names, rejected), *captions.problems, *final.problems),
        caption_source=final.source,
        facts=examined.facts,
        card=base.model_copy(update={"trigger": words.trigger, "class_word": words.class_word}),
        prepared=prepared,
    )


def _folder(path: Path) -> Path:
    root = shipped.data_path(path)
    if root.is_dir():
        return root
    if root.is_file():
        raise DataError(f"{path} is a file", "give the folder that holds the images; unpack archives first")
    near = next((p for p in (root, *root.parents) if p.is_dir()), Path("/"))
    beside = sorted(p.name for p in near.iterdir() if p.is_dir() and not p.name.startswith("."))[:5]
    raise DataError(f"no folder {path}", f"in {near} there are: {', '.join(beside)}" if beside else "check the path")


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


def _walk(root: Path) -> _Tree:
    files: list[str] = []
    links: list[str] = []
    ignored: list[str] = []
    rejected: list[Rejected] = []

    def unreadable(error: OSError) -> None:
        name = Path(str(error.filename)).relative_to(root).as_posix()
        rejected.append(Rejected(name, "unreadable", error.strerror or str(error)))

    for folder, inner, names in os.walk(root, onerror=unreadable):
        linked = [n for n in inner if (Path(folder) / n).is_symlink()]
        for entry in sorted([*names, *linked]):
            file = Path(folder) / entry
            name = file.relative_to(root).as_posix()
            if _is_system(name):
                ignored.append(_printable(name))
            elif why := _not_ordinary(root, file):
                rejected.append(Rejected(_printable(name), *why))
            else:
                (links if file.is_symlink() else files).append(name)
    return _Tree([*sorted(files, key=_natural), *sorted(links, key=_natural)], sorted(ignored), rejected)


def _is_system(name: str) -> bool:
    *folders, last = name.lower().split("/")
    hidden = any(part.startswith(".") or part in SYSTEM_FOLDERS for part in folders)
    return hidden or last.startswith(".") or last in SYSTEM_FILES


def _not_ordinary(root: Path, file: Path) -> tuple[Reason, str] | None:
    """Why a directory entry is not opened at all; None for a file of the folder."""
    if file.is_symlink():
        target = file.resolve()
        if not target.exists():
            return "link", "a link to nothing"
        if target.is_dir():
            return "link", "a link to a folder, which is not followed; copy the folder"
        if not target.is_relative_to(root.resolve()):
            return "link", "a link out of the folder; copy the file"
    if not stat.S_ISREG(file.stat().st_mode):  # a pipe would be waited on for ever
        return "unreadable", "not a regular file"
    if _printable(file.name) != file.name:
        return "unreadable", "its name is not UTF-8; rename it"
    return None


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts img2 before img10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _examine(root: Path, names: Sequence[str], rules: Rules) -> _Examined:
    """Looks into each file; of files with the same bytes the first is used."""
    found = _Examined({}, {}, [])
    first: dict[str, str] = {}
    for name in names:
        try:
            data = images.contents(root / name)
            facts = images.inspect_bytes(root / name, data, rules.decode)
            _refuse_shape(root / name, facts.size, rules)
            digest = hashlib.sha256(data).hexdigest()
            if digest in first:
                raise Unusable(root / name, "exact duplicate", f"the same bytes as {first[digest]}")
        except Unusable as e:
            found.rejected.append(Rejected(name, e.reason, e.detail))
            continue
        first[digest] = name
        found.facts[name], found.digests[name] = facts, digest
    return found


def _refuse_shape(path: Path, size: Size, rules: Rules) -> None:
    shown = f"{size.width} x {size.height} px"
    if min(size) < rules.min_side_px:
        raise Unusable(path, "too small", f"{shown}; the shorter side needs {rules.min_side_px} px")
    if max(size) > rules.max_aspect * min(size):
        raise Unusable(path, "extreme aspect", f"{shown} is beyond {rules.max_aspect:g} : 1; crop it")


def _emptiness(path: Path, names: Sequence[str], rejected: Sequence[Rejected]) -> list[str]:
    if names:
        return []
    count = f"; each of its {len(rejected)} files was rejected" if rejected else ""
    return [f"no images in {path}{count}"]


# --- where captions come from ---------------------------------------------------------------------------------------


def _find_captions(root: Path, names: Sequence[str]) -> _Captions:
    """Sidecars or metadata tables -> the text for each image."""
    tables = [n for n in names if posixpath.basename(n) in TABLES]
    sidecars = [n for n in names if Path(n).suffix.lower() in SIDECARS]
    pictures = [n for n in names if n not in {*tables, *sidecars}]
    beside = _read_sidecars(root, sidecars, pictures)
    listed = _read_tables(root, tables, pictures)
    problems = [*beside.problems, *listed.problems]
    if tables and beside.files:
        problems.append(f"two sources of captions: {tables[0]} and {_some(sorted(beside.files))}; keep one")
    chosen = listed if tables else beside
    return _Captions(chosen.source, chosen.texts, beside.files | listed.files, beside.orphans, problems)


def _read_sidecars(root: Path, sidecars: Sequence[str], pictures: Sequence[str]) -> _Captions:
    owners: dict[str, list[str]] = {}
    for picture in pictures:
        owners.setdefault(posixpath.splitext(picture)[0], []).append(picture)
    found = _Captions("sidecars" if sidecars else "none", {}, set(), [], [])
    taken: dict[str, str] = {}
    for sidecar in sidecars:
        stem = posixpath.splitext(sidecar)[0]
        if stem not in owners:
            detail = f"no image {posixpath.basename(stem)} beside it"
            found.orphans.append(Rejected(sidecar, "caption without image", detail))
            continue
        found.files.add(sidecar)
        if stem in taken:
            found.problems.append(f"two captions for {owners[stem][0]}: {taken[stem]} and {sidecar}; keep one")
            continue
        taken[stem] = sidecar
        text = _text(root, sidecar, found.problems)
        found.texts.update(dict.fromkeys(owners[stem], text))
    return found._replace(source="sidecars" if found.files else "none")


def _read_tables(root: Path, tables: Sequence[str], pictures: Sequence[str]) -> _Captions:
    source: CaptionSource = "metadata.csv" if tables and tables[0].endswith(".csv") else "metadata.jsonl"
    found = _Captions(source if tables else "none", {}, set(tables), [], [])
    by_name = {unicodedata.normalize("NFC", p): p for p in pictures}  # a Mac writes names decomposed
    homes = [posixpath.dirname(t) for t in tables]
    if len(set(homes)) < len(homes):
        found.problems.append(f"two sources of captions: {tables[0]} and {tables[1]}; keep one")
    for table in tables:
        nowhere = []
        for where, file_name, caption in _rows(root, table, found.problems):
            wanted = posixpath.normpath(posixpath.join(posixpath.dirname(table), file_name.replace("\\", "/")))
            picture = by_name.get(unicodedata.normalize("NFC", wanted))
            if picture is None:
                nowhere.append(f"{file_name!r} ({where})")
            elif found.texts.setdefault(picture, caption) != caption:
                found.problems.append(f"{table} {where}: a second, different caption for {file_name}")
        if nowhere:
            found.problems.append(f"{table} names {len(nowhere)} files that are not there: {_some(nowhere)}")
    return found


class _Row(NamedTuple):
    where: str
    file_name: str
    caption: str


def _rows(root: Path, table: str, problems: list[str]) -> Iterator[_Row]:
    """Rows of a metadata table; what is wrong with one is added to the problems."""
    text = _text(root, table, problems)
    for where, cells in (
        _csv_rows(table, text, problems) if table.endswith(".csv") else _json_rows(table, text, problems)
    ):
        file_name, captions = cells.get("file_name"), {k: cells[k] for k in ("text", "caption") if cells.get(k)}
        if not isinstance(file_name, str) or not file_name:
            problems.append(f"{table} {where}: no file_name")
        elif not all(isinstance(c, str) for c in captions.values()) or len(set(map(str, captions.values()))) > 1:
            problems.append(f"{table} {where}: wants one caption, as text in `text` or `caption`")
        else:
            yield _Row(where, file_name, str(next(iter(captions.values()), "")))


def _json_rows(table: str, text: str, problems: list[str]) -> Iterator[tuple[str, Mapping[str, object]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            problems.append(f"{table} line {number}: not JSON ({e.msg})")
            continue
        if isinstance(row, dict):
            yield f"line {number}", row
        else:
            problems.append(f"{table} line {number}: not a JSON object")


def _csv_rows(table: str, text: str, problems: list[str]) -> Iterator[tuple[str, Mapping[str, object]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if "file_name" not in (reader.fieldnames or ()):
            problems.append(f"{table}: its first line needs the columns file_name and text")
            return
        for row in reader:
            yield f"line {reader.line_num}", row
    except csv.Error as e:
        problems.append(f"{table} line {reader.line_num}: not CSV ({e})")


def _text(root: Path, name: str, problems: list[str]) -> str:
    """The file as UTF-8, without a byte-order mark, lines ending in a line feed."""
    try:
        return (root / name).read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as e:
        problems.append(f"{name} is not UTF-8 text (byte {e.start}); save it as UTF-8")
    except OSError as e:
        problems.append(f"cannot read {name}: {e.strerror}")
    return ""


# --- what captions become -------------------------------------------------------------------------------------------


def _compose(names: Sequence[str], captions: _Captions, words: Words, rules: Rules) -> _Final:
    """Captions of a raw folder: one line each, the template where there is none, the trigger in all."""
    written = {n: " ".join(captions.texts.get(n, "").split()) for n in names}
    lacking = [n for n in names if not written[n]]
    template = words.template or default_template("", words.class_word)
    nothing_to_say = not (words.trigger or words.class_word or words.template)
    stand_in = "" if nothing_to_say else fill(template, words.trigger, words.class_word)
    final = {n: inject(written[n] or stand_in, words.trigger, words.class_word) for n in names}
    problems = [] if rules.allow_uncaptioned else _lack(names, lacking, captions, nothing_to_say)
    if not words.trigger and (braces := [n for n in names if "{trigger}" in written[n]]):
        problems.append(f"captions have {{trigger}}, but no trigger is declared: {_some(braces)}")
    source: CaptionSource = captions.source if len(lacking) < len(names) else "none" if nothing_to_say else "template"
    return _Final(final, source, _caption_notes(written, captions, final, words), problems)


def _lack(names: Sequence[str], lacking: Sequence[str], captions: _Captions, nothing_to_say: bool) -> list[str]:
    allow = "--allow-uncaptioned (data.allow_uncaptioned in a recipe)"
    if not lacking:
        return []
    if len(lacking) < len(names):
        return [
            f"{len(lacking)} of {len(names)} images have no caption: {_some(lacking)}; write them, or {allow} "
            "gives them the template"
        ]
    if captions.files:
        return [f"{captions.source}: every caption is empty; write them, or remove the files to use the template"]
    if nothing_to_say:
        return [
            "no captions, and nothing to write them from; declare a trigger and a class word (--trigger sks "
            f"--class-word mug), or {allow} trains on empty captions"
        ]
    return []


def _caption_notes(
    written: Mapping[str, str], captions: _Captions, final: Mapping[str, str], words: Words
) -> list[Note]:
    notes = []
    for name in written:
        lines = [line for line in captions.texts.get(name, "").split("\n") if line.strip()]
        if len(lines) > 1:
            notes.append(Note(name, f"caption of {len(lines)} lines joined into one"))
        if words.trigger and len(_word(words.trigger).findall(final[name])) > 1:
            notes.append(Note(name, f"caption has the trigger {words.trigger!r} more than once"))
    own = [n for n, caption in written.items() if caption]
    given = [n for n in own if words.trigger and not _word(words.trigger).search(written[n])]
    if given:
        notes.append(Note("", f"trigger {words.trigger!r} written into {len(given)} of {len(own)} captions"))
    if own and len(own) < len(written):
        notes.append(Note("", f"{len(written) - len(own)} of {len(written)} captions are the template"))
    if words.template and len(own) == len(written) > 0:
        notes.append(Note("", "the template is not used: every image has its caption"))
    return notes


def _settle(names: Sequence[str], captions: _Captions, words: Words) -> _Final:
    """Captions of a prepared folder: final as they stand."""
    final = {n: " ".join(captions.texts.get(n, "").split()) for n in names}
    notes, problems = [], []
    if strays := [n for n in names if n not in captions.texts]:
        problems.append(f"{len(strays)} images are not in {TABLE}: {_some(strays)}; add rows, or remove them")
    empty = [n for n in names if n in captions.texts and not final[n]]
    if empty and (words.trigger or words.class_word):
        problems.append(f"{len(empty)} captions are empty: {_some(empty)}; write them")
    lacking = [n for n in names if words.trigger and not _word(words.trigger).search(final[n])]
    if names and len(lacking) == len(names):
        problems.append(f"the trigger {words.trigger!r} of {CARD} occurs in no caption; write it in, or prepare again")
    else:
        notes = [Note(n, f"caption lacks the trigger {words.trigger!r}") for n in lacking]
    return _Final(final, captions.source, notes, problems)


def _some(names: Sequence[str]) -> str:
    """The first three, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _complaint(path: Path, found: Audit) -> tuple[str, str]:
    """(problem, hint) for an audit that does not pass."""
    lines = [*found.problems, *(f"{r.file}: {r.reason}: {r.detail}" for r in found.rejected)]
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    hint = f"`finetune check {path}` shows every file"
    if not found.problems:
        hint = f"remove these files, or `finetune prepare {path} --out DIR` leaves them out and says so"
    return f"{path}: {count}\n  " + "\n  ".join(lines), hint


# --- writing --------------------------------------------------------------------------------------------------------


def _refuse_out(source: Path, out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty", "choose another --out, or remove it first")
    if out.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{out} lies inside {source}, which is not to be changed", "choose an --out beside it")


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
        raise RunError(f"cannot write {out}: {e.strerror or e}", "free some space, or choose another --out") from e


def _fill_folder(found: Audit, card: Card, root: Path, background: Colour) -> None:
    import tomlkit

    names = _prepared_names([(e.name, found.facts[e.name]) for e in found.used])
    rows = []
    for example in found.used:
        target = root / names[example.name]
        target.parent.mkdir(parents=True, exist_ok=True)
        if images.plain(found.facts[example.name]):
            shutil.copyfile(example.path, target)
        else:
            images.open_rgb(example.path, background).save(target, "PNG", compress_level=3)
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
        if not images.plain(facts):
            suffix = ".png"
        elif suffix not in images.SUFFIXES[facts.format] or facts.format == "MPO":
            suffix = images.SUFFIXES[facts.format][0]
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
