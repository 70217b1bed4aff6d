"""Masks by any program: `CMD {image} {mask}` reads a picture and writes its mask."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from finetune.captioning.program import IMAGE, TIMEOUT_S, command_words, refuse_absent, said_by
from finetune.data import masks
from finetune.data.images.diagnose import Unusable
from finetune.masking.masker import MadeMask
from finetune.reading import is_file, real_path

MASK = "{mask}"


class MaskProgram:
    """Calls a program for each picture, without a shell: paths in place of `{image}` and `{mask}`."""

    batch = 1

    def __init__(self, command: str, timeout_s: float = TIMEOUT_S) -> None:
        """Raises:
        DataError: `{image}` or `{mask}` is not in it, or quotes do not close.
        """
        self.words, self.timeout_s = command_words(command, IMAGE, MASK), timeout_s

    def check(self) -> None:
        refuse_absent(self.words)

    def __call__(self, files: Sequence[Path]) -> list[MadeMask]:
        return [self._of(file) for file in files]

    def _of(self, file: Path) -> MadeMask:
        with tempfile.TemporaryDirectory(prefix="mask-", ignore_cleanup_errors=True) as folder:
            target = Path(folder) / "mask.png"
            places = {IMAGE: str(real_path(file)), MASK: str(target)}
            answer = said_by([_filled(word, places) for word in self.words], self.timeout_s)
            if answer.problem:
                return MadeMask(None, answer.problem)
            if not is_file(target):
                return MadeMask(None, "the program wrote no mask")
            try:
                return MadeMask(masks.read_grey(target, masks.size_of(file)))
            except Unusable as e:
                return MadeMask(None, f"what the program wrote {e.detail}")


def _filled(word: str, places: dict[str, str]) -> str:
    for place, path in places.items():
        word = word.replace(place, path)
    return word
