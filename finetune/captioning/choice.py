"""Which captioner is asked for, as the caller says it, and the captioner made of it."""

from pathlib import Path
from typing import NamedTuple

from finetune import reading
from finetune.captioning.captioner import Captioner
from finetune.captioning.model import CaptionModel
from finetune.captioning.program import TIMEOUT_S, Program
from finetune.captioning.vocabulary import POCKET_NAME, read_vocabulary
from finetune.captioning.zero_shot import ZeroShot
from finetune.data.text.wording import CaptionWords
from finetune.errors import InputError
from finetune.recipe import bounds


class CaptionerChoice(NamedTuple):
    """One of a vocabulary, a model or a command, and what belongs to it."""

    vocabulary: str = ""
    command: str = ""
    judge: str = ""
    timeout_s: float = TIMEOUT_S
    with_model: str = ""
    prompt: str = ""

    @classmethod
    def of(cls, spec: str) -> "CaptionerChoice":
        """`pocket` or a file is a vocabulary; else it is a model's folder or hub id."""
        if spec == POCKET_NAME or reading.is_file(Path(spec)) or spec.endswith(".toml"):
            return cls(vocabulary=spec)
        return cls(with_model=spec)

    def check(self) -> None:
        """Raises InputError: none is chosen, or two, or one with what is another's; a time that cannot be."""
        bounds.check("timeout_s", self.timeout_s, "timeout")
        given = [name for name in ("vocabulary", "with_model", "command") if getattr(self, name)]
        if len(given) != 1:
            many = (
                " and ".join(f"`{name}`" for name in given) + ": more than one captioner" if given else "no captioner"
            )
            raise InputError(
                f"{many}: give one of `vocabulary`, `with_model` and `command`", "`vocabulary` pocket needs no download"
            )
        if self.judge and not self.vocabulary:
            raise InputError("`judge` has no effect without `vocabulary`", "leave out `judge`, or give `vocabulary`")
        if self.prompt and not self.with_model:
            raise InputError("`prompt` has no effect without `with_model`", "leave out `prompt`, or give `with_model`")

    def make(self, words: CaptionWords) -> Captioner:
        """Raises FinetuneError: it cannot be made, such as without its file."""
        if self.command:
            return Program(self.command, self.timeout_s)
        if self.with_model:
            return CaptionModel(self.with_model, words, self.prompt)
        return ZeroShot(read_vocabulary(self.vocabulary), words, self.judge)
