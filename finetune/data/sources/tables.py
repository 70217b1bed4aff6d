"""Tables and data sets of the hub, read row by row by `datasets`, the only file that imports it.

Rows are streamed: no table is held, and images stay the bytes that they are. What `datasets` and the libraries under
it raise is of any class; here it becomes a sentence.
"""

import csv
import glob
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from finetune import reading
from finetune.data.sources.arrow_buffers import refuse_unpacking
from finetune.data.sources.columns import Columns, choose_columns
from finetune.data.sources.conditions import Condition
from finetune.data.sources.kinds import TABLE_READERS
from finetune.data.sources.names import SAVED, Source
from finetune.data.sources.parquet import ParquetRows, parquet_schema
from finetune.errors import DataError, FinetuneError

PEEKED = 8
"""rows that tell what the columns hold"""
_SEPARATORS = ",;\t|"

SourceRow = Mapping[str, object]


class Selection(NamedTuple):
    """What is taken of tables."""

    split: str = ""
    subset: str = ""
    image_column: str = ""
    caption_column: str = ""
    """"none": there are no captions."""
    ignore_columns: tuple[str, ...] = ()
    limit: int | None = None
    where: tuple[Condition, ...] = ()


ALL = Selection()


def refuse_unused(sources: Sequence[Source], selection: Selection) -> None:
    """Raises DataError: something is asked of tables, and there is none; or what is asked cannot be."""
    asked = next((name for name in Selection._fields if getattr(selection, name) != getattr(ALL, name)), None)
    if asked and not any(source.kind in ("table", "hub") for source in sources):
        option = {"ignore_columns": "ignore_column"}.get(asked, asked)
        raise DataError(
            f"`{option}` applies to tables and hub datasets, and no source is one",
            f"leave `{option}` out: folders and archives are always read whole",
        )
    if selection.limit is not None and selection.limit < 1:
        raise DataError(f"`limit` {selection.limit} leaves no rows", "give 1 or more")


class OpenedTable(NamedTuple):
    """A table that was opened at its first row."""

    where: str
    """The source's name, for messages."""
    columns: Columns
    version: str
    """Of what is on the hub; a resumed table must be of the same."""
    rows: Callable[[int, object], Iterator[SourceRow]]
    """From a row on, whose position is known; None: from the beginning."""
    position: Callable[[], object]
    """After the row that was given last: JSON."""
    splits: tuple[str, ...]
    split: str


def open_table(source: Source, selection: Selection, aside: Path) -> OpenedTable:
    """aside: a folder for what `datasets` writes.

    Raises:
        DataError: it cannot be read, or has no such subset, split or column.
    """
    where = source.written
    with _worded(source, lambda: ""):
        streams, version = _streams(source, selection.subset, aside)
        split = _split(where, tuple(streams), selection.split)
        stream = streams[split]
        pictures, stream = _undecoded(stream)
        first = [dict(row) for row in itertools.islice(iter(stream), PEEKED)]
    if not first:
        raise DataError(f"{where} has no rows in the split {split}", f"the splits are: {', '.join(streams)}")
    columns = choose_columns(
        where, first, pictures, selection.image_column, selection.caption_column, selection.ignore_columns
    )
    for one in selection.where:
        if one.column not in first[0]:
            hint = f"the columns are: {', '.join(first[0])}"
            raise DataError(f"{where} has no column {one.column!r} (`where` {one.written!r})", hint)
    wanted = [columns.image, columns.caption, *columns.kept, *(one.column for one in selection.where)]
    needed = [name for name in first[0] if any(name in (w, w.partition(".")[0]) for w in wanted)]
    stream = stream.select_columns(needed)

    def rows(number: int, position: object) -> Iterator[SourceRow]:
        with _worded(source, lambda: f" after row {number - 1}" if number else ""):
            if position is not None:
                stream.load_state_dict(position)
            for row in stream:
                number += 1
                yield row

    return OpenedTable(where, columns, version, rows, stream.state_dict, tuple(streams), split)


def read_address(source: Source, path: str, most: int) -> bytes:
    """A file inside of a data set of the hub, as `datasets` names it, up to so many bytes. Raises DataError."""
    from datasets.utils.file_utils import xopen

    with _worded(source, lambda: f" at {path}"), xopen(path, "rb") as file:
        found: bytes = file.read(most)
    return found


def _streams(source: Source, subset: str, aside: Path) -> tuple[Mapping[str, Any], str]:
    """(split -> its rows, the version)."""
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # asks the network, for local files too
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    if not source.hub:
        _refuse_arrow_bombs(source.path)
    if not source.hub and any(reading.is_file(source.path / name) for name in SAVED):
        saved = datasets.load_from_disk(str(source.path))
        named = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
        return {name: one.to_iterable_dataset() for name, one in named.items()}, ""
    if not source.hub and not subset and source.path.name.lower().endswith(".parquet") and reading.is_file(source.path):
        return {"train": _parquet_rows([source.path], None)}, ""
    builder = _builder(source, subset, aside)
    if not source.hub and "Parquet" in (kind.__name__ for kind in type(builder).__mro__):
        files = {str(split): [Path(one) for one in some] for split, some in builder.config.data_files.items()}
        return {split: _parquet_rows(some, builder.info.features) for split, some in files.items()}, ""
    return builder.as_streaming_dataset(), builder.hash if source.hub else ""


def _refuse_arrow_bombs(path: Path) -> None:
    """A saved data set names its own files, which may have any ending."""
    for place, _, names in os.walk(path):
        for file in (Path(place, name) for name in names):
            if file.suffix.lower() != ".json" and reading.is_file(file):
                refuse_unpacking(file)
    if reading.is_file(path):
        refuse_unpacking(path)


def _parquet_rows(paths: Sequence[Path], features: Mapping[str, object] | None) -> ParquetRows:
    """features: those that a data set's card declares."""
    import datasets

    return ParquetRows(paths, _images(features or datasets.Features.from_arrow_schema(parquet_schema(paths[0]))))


def _builder(source: Source, subset: str, aside: Path) -> Any:
    """Of `datasets`, which looks at what is there and reads nothing yet."""
    from datasets import load_dataset_builder

    if source.hub:
        return load_dataset_builder(source.hub, subset or None, revision=source.revision or None)
    own = {"cache_dir": str(aside)}
    if reading.is_dir(source.path):
        return load_dataset_builder(str(source.path), subset or None, **own)
    if subset:
        raise DataError(f"{source.written} is one table and has no subsets", "leave `subset` out")
    kind = next(TABLE_READERS[end] for end in TABLE_READERS if source.path.name.lower().endswith(end))
    options = _as_text(source.path) if kind == "csv" else {}
    return load_dataset_builder(kind, data_files=[_literal(source.path, aside)], **own, **options)


def _literal(path: Path, aside: Path) -> str:
    """The file under a name that is no pattern."""
    name = str(reading.real_path(path))
    if glob.escape(name) == name and "::" not in name and "://" not in name:
        return name
    link = aside / f"table{path.suffix.lower()}"
    aside.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    return str(link)


def _as_text(path: Path) -> dict[str, object]:
    """How a CSV file is read, all its cells as they are written."""
    import datasets

    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline(1 << 20)
    separator = max(_SEPARATORS, key=head.count) if any(s in head for s in _SEPARATORS) else ","
    names = next(csv.reader([head], delimiter=separator), [])
    if not names or len(set(names)) < len(names):
        raise DataError(
            f"{path}: the first line must name the columns, each once", "write the names of the columns above the rows"
        )
    texts = datasets.Features({name: datasets.Value("string") for name in names})
    return {
        "sep": separator, "features": texts, "keep_default_na": False, "encoding": "utf-8-sig", "on_bad_lines": "error",
    }  # fmt: skip


def _split(where: str, there: Sequence[str], asked: str) -> str:
    if asked and asked not in there:
        raise DataError(f"{where} has no split {asked!r}", f"the splits are: {', '.join(there)}")
    if asked or len(there) == 1:
        return asked or there[0]
    if "train" in there:
        return "train"
    raise DataError(f"{where} has several splits: {', '.join(there)}", "name one with `split`")


def _undecoded(stream: Any) -> tuple[list[str], Any]:
    """(the columns that are declared as images, the rows with their images as bytes)."""
    if isinstance(stream, ParquetRows):
        return list(stream.pictures), stream
    return (_images(stream.features), stream.decode(False)) if stream.features else ([], stream)


def _images(features: Mapping[str, object]) -> list[str]:
    return [name for name, feature in features.items() if type(feature).__name__ == "Image"]


@contextmanager
def _worded(source: Source, place: Callable[[], str]) -> Iterator[None]:
    """place: where it was when it failed; empty: nothing was read."""
    logger = logging.getLogger("huggingface_hub")  # tells of each try
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except (FinetuneError, GeneratorExit, KeyboardInterrupt):
        raise
    except Exception as e:
        what = f"{source.written} cannot be read{place()}: {_said(e)}"
        if source.hub and not place():
            what = f"there is no folder {source.written}, and it cannot be read as a hub dataset: {_said(e)}"
        kept = "; the rows that were read are kept: run the same command again to continue" if place() else ""
        raise DataError(what, _next_step(source, e) + kept) from e
    finally:
        logger.setLevel(level)


def _said(error: Exception) -> str:
    """The first sentence of the innermost error, of which others only say that something failed."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


def _next_step(source: Source, error: Exception) -> str:
    names = {kind.__name__ for one in _chain(error) for kind in type(one).__mro__}
    if not source.hub:
        return "the file may be incomplete: copy or download it again"
    if "Config name is missing" in str(error):
        return "name one with `subset`"
    if names & {"DatasetNotFoundError", "RepositoryNotFoundError", "GatedRepoError"} and not _is_offline():
        return "check its name; if it is private or gated, log in first: hf auth login"
    if names & {"ConnectionError", "ConnectError", "OfflineModeIsEnabled", "ConnectTimeout", "ReadTimeout", "OSError"}:
        return "check the network connection, or download the dataset elsewhere and give its folder"
    return f"look at it on huggingface.co/datasets/{source.hub}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
