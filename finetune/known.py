"""What follows from configurations and versions alone, worked out once and kept between commands."""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune import reading
from finetune.caches import default_root
from finetune.errors import InputError, RunError
from finetune.saving import write_bytes

KNOWN_FOLDER = "known"
"""in the cache"""


def known(what: str, of: object, libraries: Sequence[str], work: Callable[[], Any]) -> Any:
    """The JSON value that `work` gives, or gave before of an equal `of` (JSON) with the same versions of the libraries
    and with this very program. What cannot be kept is worked out again."""
    key = json.dumps([what, of, {name: version(name) for name in libraries}, _program()], sort_keys=True)
    file = _file(hashlib.sha256(key.encode()).hexdigest())
    if file is not None and (held := _held(file)) is not None:
        return held[0]
    made = work()
    if file is not None:
        body = json.dumps([made]).encode()
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body, file, flush=False)
    return made


def clear_known(root: Path) -> None:
    """Remove all that is kept here, and nothing else."""
    with suppress(OSError), os.scandir(root / KNOWN_FOLDER) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False) and entry.name.endswith((".json", ".part")):
                os.unlink(entry.path)
        (root / KNOWN_FOLDER).rmdir()


def _held(file: Path) -> list[Any] | None:
    """None: there is none, or it is not whole."""
    try:
        digest, _, body = reading.read_bytes(file, InputError).partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() == digest:
            found = reading.json_value(body.decode(), str(file), InputError, "")
            return found if isinstance(found, list) else None
    except (InputError, UnicodeDecodeError):
        pass
    return None


def _file(key: str) -> Path | None:
    try:
        return default_root() / KNOWN_FOLDER / f"{key}.json"
    except RunError:
        return None


@functools.cache
def _program() -> str:
    """Changes with every change of this package's files."""
    root, found = Path(__file__).parent, []
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in ("__pycache__", "bundled"))
        for name in sorted(names):
            if name.endswith(".py"):
                stat = os.stat(os.path.join(place, name))
                found.append(f"{place}/{name} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(found).encode()).hexdigest()
