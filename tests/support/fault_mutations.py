"""Ways to save that lose something, put in the place of ours: the campaign must find each of them."""

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from finetune import saving
from finetune.references import step_folders
from finetune.training import checkpoint


class Mutation(NamedTuple):
    ours: Callable[..., Any]
    worse: Callable[..., Any]
    target: str
    """what is lost by it"""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """In every module that has the function by its name."""
        name = self.ours.__name__
        modules = [module for path, module in sys.modules.items() if path.startswith("finetune")]
        places = [place for place in modules if vars(place).get(name) is self.ours]
        assert places, name
        patches = [patch.object(place, name, self.worse) for place in places]
        for one in patches:
            one.start()
        try:
            yield
        finally:
            for one in patches:
                one.stop()


def in_place(content: bytes | Iterable[bytes], path: Path, flush: bool = True) -> None:
    path.write_bytes(content if isinstance(content, bytes | bytearray) else b"".join(content))


ours = saving.write_bytes


def unflushed(content: bytes, path: Path, flush: bool = True) -> None:
    ours(content, path, flush=False)


def flushed_too_late(content: bytes, path: Path, flush: bool = True) -> None:
    ours(content, path, flush=False)
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def old_one_first(folder: Path) -> Iterator[Path]:
    beside = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        saving.flush_files(beside)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


save_checkpoint = checkpoint.save_checkpoint


def oldest_first(folder: Path, *rest: Any) -> Path:
    for old in step_folders(folder):
        shutil.rmtree(old)
    return save_checkpoint(folder, *rest)


MUTATIONS: Mapping[str, Mutation] = {
    "a file is written in place": Mutation(ours, in_place, "an adapter file"),
    "captions are written in place": Mutation(ours, in_place, "captions"),
    "a record is written in place": Mutation(ours, in_place, "a run's record"),
    "a file is not flushed": Mutation(ours, unflushed, "an adapter file"),
    "a file is flushed when it has its name": Mutation(ours, flushed_too_late, "an adapter file"),
    "captions are not flushed": Mutation(ours, unflushed, "captions"),
    "a dataset is not flushed": Mutation(saving.flush_files, lambda folder: None, "a prepared dataset"),
    "a folder is emptied before the new one has its name": Mutation(
        saving.whole_or_not, old_one_first, "an adapter's PEFT folder"
    ),
    "old checkpoints go before the new one is whole": Mutation(save_checkpoint, oldest_first, "a checkpoint"),
}
