"""Which masker is asked for, as the caller says it, and the masker made of it."""

from collections.abc import Callable
from typing import NamedTuple

from finetune.captioning.program import TIMEOUT_S
from finetune.errors import InputError
from finetune.masking.background import Background
from finetune.masking.dataset import mask_quietly as mask_quietly
from finetune.masking.masker import Masker
from finetune.masking.model import MaskModel
from finetune.masking.program import MaskProgram
from finetune.recipe import bounds

BACKGROUND = "background"


class MaskerChoice(NamedTuple):
    """One of a model and a command, and what belongs to it."""

    with_model: str = ""
    command: str = ""
    prompt: str = ""
    timeout_s: float = TIMEOUT_S

    def check(self) -> None:
        """Raises InputError: none is chosen, or two, or one with what is another's; a time that cannot be."""
        bounds.check("timeout_s", self.timeout_s, "timeout")
        if bool(self.with_model) == bool(self.command):
            many = "`with_model` and `command`: more than one masker" if self.command else "no masker"
            raise InputError(
                f"{many}: give one of `with_model` and `command`", "`with_model` background needs no model"
            )
        if self.prompt and self.with_model in ("", BACKGROUND):
            raise InputError("`prompt` has no effect without a model", "leave out `prompt`, or give `with_model`")

    def checked(self) -> Callable[[str | None], Masker]:
        """`make`, when it can be. Raises InputError: as `check`."""
        self.check()
        return self.make

    def make(self, class_word: str | None) -> Masker:
        """class_word: of the dataset, which is looked for where nothing else is said.

        Raises FinetuneError: it cannot be made.
        """
        if self.command:
            return MaskProgram(self.command, self.timeout_s)
        if self.with_model == BACKGROUND:
            return Background()
        return MaskModel(self.with_model, self.prompt or class_word or "")
