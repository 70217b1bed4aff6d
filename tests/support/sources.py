"""Small sources of pictures: folders, archives and tables."""

import io
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from finetune.data.prepare import preparing
from finetune.events import Event, Note


def picture_bytes(seed: int, form: str = "PNG", size: tuple[int, int] = (64, 48)) -> bytes:
    """A picture like no other."""
    content = io.BytesIO()
    coarse = Image.frombytes("RGB", (8, 8), random.Random(seed).randbytes(192))
    coarse.resize(size).save(content, form)
    return content.getvalue()


def captioned_folder(folder: Path, seeds: Sequence[int], word: str = "mug") -> Path:
    """Photos with a caption beside each."""
    folder.mkdir(parents=True)
    for seed in seeds:
        (folder / f"{seed}.jpg").write_bytes(picture_bytes(seed, "JPEG"))
        (folder / f"{seed}.txt").write_text(f"a {word} number {seed}")
    return folder


def table_rows(seeds: Sequence[int], **columns: Any) -> list[dict[str, Any]]:
    """Rows with the bytes of a picture and a caption."""
    return [
        {"image": {"bytes": picture_bytes(seed), "path": f"bell{seed}.png"}, "text": f"a mug of row {seed}", **columns}
        for seed in seeds
    ]


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], group: int | None = None) -> Path:
    """group: rows of a row group."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=group)
    return path


def prepared_from(sources: Any, out: Path, **said: Any) -> tuple[Any, list[str]]:
    """(the dataset, the notes that were told on the way)."""
    told: list[str] = []
    work = preparing(sources, out, **({"trigger": "sks", "class_word": "mug"} | said))
    while True:
        try:
            event: Event = next(work)
        except StopIteration as e:
            return e.value, told
        if isinstance(event, Note):
            told.append(event.text)
