"""What pictures are made from: a request for one, a set of them, adapters with weights, how the base is opened."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from finetune import reading, references
from finetune.choices import Precision
from finetune.errors import BaseError, InputError
from finetune.recipe import Sample, bounds

if TYPE_CHECKING:
    from finetune.families.base import BaseInfo, FewSteps

MOST_WEIGHT = 100.0
"""that an adapter is applied at; people use up to 2"""
STEPS: int = Sample.model_fields["steps"].default
"""Denoising steps, unless said otherwise: those of a recipe's sheet."""


class SampleRequest(NamedTuple):
    """One picture to generate. The seed decides its noise, on every device alike; sizes are in px."""

    prompt: str
    seed: int
    negative: str = ""
    steps: int = STEPS
    guidance: float = 7.5
    width: int = 512
    height: int = 512

    def described(self) -> dict[str, str]:
        return {k: str(v) for k, v in self._asdict().items()}


class PromptOptions(NamedTuple):
    """What one prompt asks for instead of what is asked for all; None: the same as all."""

    negative: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    cfg: float | None = None
    """Of classifier-free guidance, as kohya has it beside the guidance that some bases are told."""
    width: int | None = None
    height: int | None = None
    where: str = ""
    """Where it was written."""


AS_ALL = PromptOptions()


@dataclass(frozen=True)
class SampleSet:
    """Every prompt at `count` seeds in a row; steps, guidance and size (width, height in px) are the base's or the
    scheduler's unless said.

    trigger, class_word: what stands in place of {trigger} and {class_word}; the adapters' own unless said. sources:
    where each prompt was written, such as a file and a line.
    """

    prompts: Sequence[str]
    negative: str = ""
    seed: int = 0
    count: int = 1
    steps: int | None = None
    guidance: float | None = None
    size: tuple[int, int] | None = None
    trigger: str | None = None
    class_word: str | None = None
    sources: Sequence[str] = ()
    options: Sequence[PromptOptions] = ()
    """What each prompt asks for by itself; empty: none does."""

    def options_of(self, number: int) -> PromptOptions:
        return self.options[number] if self.options else AS_ALL

    @property
    def negatives(self) -> list[str]:
        """Every negative prompt of the set."""
        own = [one.negative for one in self.options if one.negative is not None]
        return list(dict.fromkeys([self.negative, *own]))

    def check_numbers(self) -> None:
        """Raises InputError: a number that a recipe may not have, or that many pictures together."""
        for key, name, given in (
            ("sample.steps", "steps", self.steps), ("sample.guidance", "guidance", self.guidance),
            ("sample.seed", "seed", self.seed), ("count", "count", self.count),
            *(("data.resolution", "size", side) for side in self.size or ()),
        ):  # fmt: skip
            if given is not None:
                bounds.check(key, given, name)
        bounds.check("sample.seed", self.seed + self.count - 1, "seed")
        bounds.check_pictures(len(self.prompts), self.count)

    def requests(self, base: "BaseInfo", few: "FewSteps | None" = None) -> list[list[SampleRequest]]:
        """A row for each seed, in it a request for each prompt. few: what a scheduler for few steps needs.

        Raises:
            InputError: a number is out of bounds or fits neither base nor scheduler; a negative prompt has no effect.
        """
        self.check_numbers()
        return [
            [self._request(number, row, base, few) for number in range(len(self.prompts))] for row in range(self.count)
        ]

    def _request(self, number: int, row: int, base: "BaseInfo", few: "FewSteps | None") -> SampleRequest:
        """Of a prompt by its number, the picture in that row."""
        own = self.options_of(number)
        place = f"{own.where}: " if own != AS_ALL else ""
        steps = own.steps or self.steps or (few.steps if few else STEPS)
        if few and steps > few.most:
            raise InputError(
                f"{place}`steps` {steps}: this `scheduler` takes at most {few.most}", f"usual are {few.steps}"
            )
        width, height = self.size or (base.resolution, base.resolution)
        width, height = own.width or width, own.height or height
        if min(width, height) < base.stride or width % 8 or height % 8:
            raise InputError(
                f"{place}`size` {width}x{height} does not fit this base",
                f"width and height must be multiples of 8 px, at least {base.stride}",
            )
        if steps > base.noise_levels:
            raise InputError(
                f"{place}`steps` {steps}: this base was trained at {base.noise_levels} noise levels, and is denoised "
                "in no more steps",
                "20 to 50 are usual",
            )
        guidance = self._guidance(own, base, few)
        negative = self.negative if own.negative is None else own.negative
        if negative and (guidance <= 1 or base.guided):
            why = "this base reads none" if base.guided else "it needs a `guidance` above 1"
            raise InputError(f"{place}`negative` has no effect: {why}", "leave it out")
        seed = self.seed if own.seed is None else own.seed
        bounds.check("sample.seed", seed + row, "seed")
        return SampleRequest(self.prompts[number], seed + row, negative, steps, guidance, width, height)

    def _guidance(self, own: PromptOptions, base: "BaseInfo", few: "FewSteps | None") -> float:
        """kohya's two guidances are one for a base that is told none, and for one that is told its guidance the other
        must be off."""
        usual = few.guidance if few else base.guidance
        for_all = usual if self.guidance is None else self.guidance
        if own.cfg is None:
            return for_all if own.guidance is None else own.guidance
        if base.guided and own.cfg > 1:
            raise InputError(
                f"{own.where}: classifier-free guidance ({own.cfg:g}) is not used on this base, which is told one",
                "write `guidance` instead",
            )
        if base.guided:
            return for_all if own.guidance is None else own.guidance
        if own.guidance not in (None, own.cfg):
            raise InputError(
                f"{own.where}: two different guidances, {own.cfg:g} and {own.guidance:g}, and this base takes one",
                "keep one of them",
            )
        return own.cfg


class AdapterWeight(NamedTuple):
    """An adapter file or PEFT folder, and how strongly it is applied: 1 as trained, 0 not at all."""

    path: Path
    weight: float = 1.0

    @staticmethod
    def of(text: str) -> "AdapterWeight":
        """From `FILE`, `FILE:weight` or `RUN@STEP:weight`.

        Raises:
            BaseError: there is no such file or step, or the weight is no finite number.
        """
        path, colon, number = text.rpartition(":")
        weight = 1.0
        if colon and not reading.exists(Path(text)):
            try:
                text, weight = path, float(number)
            except ValueError:
                pass
        found = references.adapter_path(text)
        if not reading.exists(found):
            raise BaseError(f"no adapter file {text}", "write FILE, or FILE:weight, such as mug.safetensors:0.8")
        if not abs(weight) <= MOST_WEIGHT:  # nor NaN
            raise BaseError(
                f"the weight of {text} is {weight}",
                f"write a number between -{MOST_WEIGHT:g} and {MOST_WEIGHT:g}, such as mug.safetensors:0.8",
            )
        return AdapterWeight(found, weight)


class SessionOptions(NamedTuple):
    """How the base is opened to generate with it."""

    precision: Precision = "auto"
    """Compute precision. auto: bf16 or fp16 on a GPU, fp32 on a CPU."""
    base_bits: int | None = None
    """4: the denoiser's weights are held in 4 bits (nf4)."""
    text_encoder_bits: int | None = None
    """8 or 4: bits of a large text encoder's weights."""
    scheduler: str = ""
    """A name of the family's schedulers; empty: the base's own."""
    safety_checker: bool = True
    """The base's own safety checker is on, where the base has one."""
    merged: bool = False
    """Adapters are merged into the weights, in float32, before they are used."""
    prediction: str = ""
    """What the base predicts where it does not say so itself: epsilon or v. Empty: what adapters were trained for,
    or what a forward pass tells."""


USUAL = SessionOptions()
