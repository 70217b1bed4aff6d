"""metadata.jsonl as it is written: captions are put into its rows, and all else in them stays."""

import json
import posixpath
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from finetune import reading
from finetune.data.text.caption_files import TABLE
from finetune.errors import DataError, RunError
from finetune.saving import write_bytes


class CaptionTable:
    """The rows of a folder's metadata.jsonl, in their order; without a file there is none yet."""

    def __init__(self, root: Path) -> None:
        self.path = root / TABLE
        text = reading.read_text(self.path, DataError) if reading.is_file(self.path) else ""
        lines = [line for line in text.split("\n") if line.strip()]
        self.rows = [reading.json_table(line, str(self.path), DataError, "", finite=False) for line in lines]
        self._by_name = {_key(str(row["file_name"])): row for row in self.rows}

    def put(self, captions: Mapping[str, str]) -> None:
        """These captions, marked as a model's, by picture, as `put_cells`.

        Raises:
            RunError: it cannot be written.
        """
        for name in captions:
            self._by_name.get(_key(name), {}).pop("caption", None)
        self.put_cells({name: {"text": caption, "caption_by": "model"} for name, caption in captions.items()})

    def put_cells(self, cells: Mapping[str, Mapping[str, object]]) -> None:
        """These columns, by picture; the file is replaced whole or stays.

        Raises:
            RunError: it cannot be written.
        """
        for name, some in cells.items():
            row = self._by_name.get(_key(name))
            if row is None:
                row = self._by_name[_key(name)] = {"file_name": name}
                self.rows.append(row)
            row.update(some)
        try:
            write_bytes("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in self.rows).encode(), self.path)
        except OSError as e:
            raise RunError(f"cannot write {self.path}: {e.strerror}", "free some space, or make it writable") from e


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))
