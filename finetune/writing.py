"""Before long work: can its result be written where it shall go? It is tried, and nothing of that is left."""

import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from finetune import reading
from finetune.errors import RunError

ANOTHER_OUT = "choose another `out`, or free some space"
FREE_IT = "free some space, or make it writable"


def try_folder(folder: Path, names: Iterable[str] = ("x",), needed: int = 0, hint: str = ANOTHER_OUT) -> None:
    """Make a folder that may not be there yet, write into it under the longest of these names, and remove both.

    needed: bytes that all files together may take. hint: of the error.

    Raises:
        RunError: the folder or such a file cannot be made, a file is in the way, or the disk has no room.
    """
    try:
        missing = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            reserve(folder, needed, _beside(max(names, key=lambda name: len(os.fsencode(name)))))
        finally:
            for one in missing:
                with suppress(OSError):
                    one.rmdir()
    except OSError as e:
        raise RunError(f"cannot write into {folder}: {e.strerror}", hint) from e
    except ValueError as e:  # a name with a NUL
        raise RunError(f"cannot write into {str(folder)!r}: {e}", hint) from e


def try_file(path: Path, hint: str = ANOTHER_OUT) -> None:
    """The same of one file, which may be there and is then replaced later.

    Raises:
        RunError: as `try_folder`, or it is a folder.
    """
    if reading.is_dir(path):
        raise RunError(f"cannot write {path}: it is a folder", hint)
    try_folder(path.parent, (path.name,), hint=hint)


def reserve(folder: Path, needed: int, name: str = ".room") -> None:
    """Ask the disk for that much, under that name, and give it back. Raises OSError when it says no."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(28, f"{needed / 2**30:.2f} GiB needed, {free / 2**30:.2f} GiB free")
    probe = folder / f"{name.removesuffix('.part')}.{os.getpid()}.part"  # as what a killed writer leaves
    try:
        with probe.open("wb") as file:
            if needed and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, needed)
            else:
                file.write(b"room")
    finally:
        with suppress(OSError):
            probe.unlink()


def _beside(name: str) -> str:
    """As long as the name of a half-written file that will take this name's place."""
    return f".{name}.{secrets.token_hex(4)}.part"
