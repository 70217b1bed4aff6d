"""Pictures of a prepared dataset as hard links to their sources: a second name of the same file, which takes no room.

A symbolic link would lead out of the dataset, which every reader here refuses, and be broken by moving either folder.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from finetune import reading
from finetune.errors import RunError
from finetune.events import Note


@dataclass
class Linking:
    """asked: by the user, for all pictures. own: a folder whose files nobody else has, which are always linked."""

    asked: bool
    own: Path
    _made: list[Path] = field(default_factory=list)

    def made(self, source: Path, target: Path) -> bool:
        """Whether the target is now a link to the source; if not, it is to be written.

        Raises:
            RunError: links were asked for, and here is none to be had.
        """
        if not self.asked and not self._is_own(source):
            return False
        try:
            os.link(reading.real_path(source), target)
        except OSError as e:
            if not self.asked:
                return False
            raise RunError(
                f"cannot link {source} into the dataset: {e.strerror or e}",
                "hard links need both folders on one disk, and files that you own: choose another `out`, or leave "
                "`link` out to copy the pictures",
            ) from e
        self._made.append(target)
        return True

    def note(self, pictures: int) -> Note:
        linked = len(self._made)
        rest = f"; the other {pictures - linked} had to be converted" if linked < pictures else ""
        return Note(f"{linked} of {pictures} images are hard links to the files of their source{rest}")

    def _is_own(self, source: Path) -> bool:
        return source.is_relative_to(self.own) and source.stat().st_nlink == 1
