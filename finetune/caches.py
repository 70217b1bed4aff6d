"""Where what is kept between runs is: encoded images and captions, what was found out about datasets and bases."""

import functools
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from finetune import reading
from finetune.errors import RunError


def default_root() -> Path:
    """FINETUNE_CACHE, or the user's cache folder; where there is none that can be written, a temporary one.

    Raises:
        RunError: there is none of these.
    """
    if said := os.environ.get("FINETUNE_CACHE"):
        return Path(said)
    usual = os.environ.get("XDG_CACHE_HOME") or (home / ".cache" if (home := reading.home()) else None)
    root = Path(usual) / "finetune" if usual else None
    return root if root and _can_be_written(root) else _temporary_root()


def _can_be_written(folder: Path) -> bool:
    there = next(p for p in (folder, *folder.parents) if reading.exists(p))
    return reading.is_dir(there) and os.access(there, os.W_OK | os.X_OK)


@functools.cache
def _temporary_root() -> Path:
    """The same for each call of a user, and of nobody else: what is read from a cache is trained on."""
    try:
        root = Path(tempfile.gettempdir()) / f"finetune-{os.geteuid()}"
        with suppress(FileExistsError):
            root.mkdir(mode=0o700)
        found = root.lstat()
        own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
        return root if own else Path(tempfile.mkdtemp(prefix="finetune-"))
    except OSError as e:
        raise RunError(
            f"no folder for the cache: neither a home nor a temporary folder can be written ({e.strerror})",
            "name a folder: data.cache, or the variable FINETUNE_CACHE",
        ) from e
