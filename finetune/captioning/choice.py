"""Which captioner is asked for, as the caller says it, and the captioner made of it."""

from typing import NamedTuple

from finetune.captioning.captioner import Captioner
from finetune.captioning.program import TIMEOUT_S, Program
from finetune.captioning.vocabulary import read_vocabulary
from finetune.captioning.zero_shot import ZeroShot
from finetune.data.wording import CaptionWords
from finetune.errors import InputError


class CaptionerChoice(NamedTuple):
    """One of a vocabulary or a command, and what belongs to it."""

    vocabulary: str = ""
    command: str = ""
    judge: str = ""
    timeout_s: float = TIMEOUT_S

    def check(self) -> None:
        """Raises InputError: none is chosen, or two, or one with what is another's."""
        if bool(self.vocabulary) == bool(self.command):
            many = "both a vocabulary and a command" if self.vocabulary else "no captioner"
            raise InputError(f"{many}: give one of `vocabulary` and `command`", "vocabulary pocket needs nothing else")
        if self.judge and not self.vocabulary:
            raise InputError("a judge belongs to a vocabulary", "leave out `judge`, or give `vocabulary`")

    def make(self, words: CaptionWords) -> Captioner:
        """Raises FinetuneError: it cannot be made, such as without its file."""
        if self.command:
            return Program(self.command, self.timeout_s)
        return ZeroShot(read_vocabulary(self.vocabulary), words, self.judge)
