"""Files that are read twice, and must be the same both times: too large to be held, or opened by another library.

What a small file holds is read once, and its digest is of the bytes that are used. Of the others size, time and inode
are compared: before the first reading, and after the last.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from finetune.errors import BaseError
from finetune.reading import ErrorClass


class Stamps(NamedTuple):
    """Files as they were when this was made; one that is not there counts as well."""

    files: dict[Path, tuple[int, ...]]

    @staticmethod
    def of(files: Iterable[Path]) -> "Stamps":
        return Stamps({file: _stamp(file) for file in files})

    def check(self, kind: ErrorClass = BaseError) -> None:
        """Raises kind: one of the files has been changed or replaced since."""
        changed = next((file for file, stamp in self.files.items() if _stamp(file) != stamp), None)
        if changed is not None:
            raise kind(f"{changed} was changed while it was in use", "leave it as it is meanwhile, and start again")


@contextmanager
def unchanged(files: Iterable[Path], kind: ErrorClass = BaseError) -> Iterator[None]:
    """Raises kind: one of the files was changed inside the block."""
    before = Stamps.of(files)
    yield
    before.check(kind)


def files_in(path: Path) -> list[Path]:
    """A file itself; of a folder all that lies in it."""
    try:
        return sorted(path.rglob("*")) or [path]
    except (OSError, ValueError):
        return [path]


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except (OSError, ValueError):
        return ()
    return found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino
