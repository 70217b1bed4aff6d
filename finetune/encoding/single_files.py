"""Entries of the format before shards: a file for each, moved into a shard when it is needed."""

from contextlib import suppress
from pathlib import Path

from torch import Tensor

from finetune import reading
from finetune import tensors as weights
from finetune.errors import BaseError


class SingleFiles:
    """The entries of one kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: bytes) -> dict[str, Tensor] | None:
        """None: there is none, or it is damaged."""
        path = self._path(key)
        try:
            found = weights.load_tensors(path) if reading.is_file(path) else None
            if found is None or weights.fingerprint(found) != weights.read_header(path).metadata.get("sha256"):
                return None
        except (BaseError, OSError):  # another process clears the cache meanwhile
            return None
        return found

    def remove(self, key: bytes) -> None:
        with suppress(OSError):
            self._path(key).unlink()

    def _path(self, key: bytes) -> Path:
        return self.folder / key.hex()[:2] / f"{key.hex()}.safetensors"
