"""What a model family is: the facts and verbs that training, sampling and export ask of it.

Shapes: b batch, H W pixels, h w latent cells, c latent channels, n tokens, d text width, p pooled width.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, cast

import torch
from torch import Tensor, nn

from finetune.data.example import Example
from finetune.data.images import decode
from finetune.data.images.buckets import to_array
from finetune.diffusion.process import Prediction, Process
from finetune.families.parts import Parts, checkpoint_text
from finetune.families.readers import Reader


class BaseInfo(NamedTuple):
    """What a base is, found without loading its weights."""

    family: str
    variant: str
    """which published line of the family: sd1, sd2"""
    prediction: Prediction
    zero_snr: bool
    """the path ends in pure noise"""
    resolution: int
    """px of a square the base was made for"""
    stride: int
    """px; bucket sides are multiples of it"""
    max_tokens: int
    prediction_known: bool
    """False: prediction is a guess until the weights are loaded and asked"""
    evidence: str
    """where prediction and family were read from, for the user"""
    distilled: str = ""
    """what was distilled into the base and training may undo; empty: nothing"""
    guided: bool = False
    """the denoiser is told a guidance scale, and paints without negative prompts"""
    guidance: float = 7.5
    """that pictures are usually painted with; 1: none"""
    channels: int = 4
    """of latents"""
    vae_scale_factor: int = 8
    """px of a latent cell's side"""
    text: tuple[int, int, int] = (77, 768, 0)
    """tokens, their width and the pooled width that the denoiser reads; of captions of any length, many tokens"""
    masked: bool = False
    """captions are of any length"""
    encoded: int = 0
    """numbers that the text encoders make of a caption, where the denoiser reads more; 0: just those of `text`"""
    frames: int = 0
    """of latents of a video base; 0: pictures, whose latents have no axis of time"""
    dtype: str = ""
    """that the denoiser's weights are stored in, the commonest first: fp16 and fp32"""
    unused: tuple[str, ...] = ()
    """what its files hold that nothing here reads, by name"""
    noise_levels: int = 1000
    """that the base was trained at: the most denoising steps its samplers can take"""

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        """(c, h, w) of a picture of that size in px; of videos (c, frames, h, w)."""
        time = (self.frames,) if self.frames else ()
        return (self.channels, *time, height // self.vae_scale_factor, width // self.vae_scale_factor)

    def settled(self, prediction: Prediction, by: str) -> "BaseInfo":
        """Of a base that does not say what it predicts, by whoever knows."""
        told = f"{self.evidence}; by {by}"
        return self._replace(prediction=prediction, prediction_known=True, evidence=told)

    def described(self) -> str:
        zero = ", zero terminal SNR" if self.zero_snr and self.prediction != "flow" else ""
        distilled = f", distilled: {self.distilled}" if self.distilled else ""
        stored = f", stored in {self.dtype}" if self.dtype else ""
        predicts = "predicts" if self.prediction_known else "does not say what it predicts, likely"
        return f"{self.family} ({self.variant}), {predicts} {self.prediction}{zero}{distilled}{stored}"


class Labels(NamedTuple):
    """What adapter files and their readers call a base."""

    title: str
    """of its line"""
    base_version: str
    """kohya's ss_base_model_version"""
    architecture: str
    """ModelSpec's, without /lora"""
    unlike: tuple[str, ...] = ()
    """base versions of the same line whose adapters are none for this base, as they predict otherwise"""


class ModelLine(NamedTuple):
    """A line of published models, by what adapter files say of it."""

    title: str
    starts: tuple[str, ...]
    """how ss_base_model_version and modelspec.architecture begin, in lower case; the longest that fits counts"""
    keys: tuple[str, ...] = ()
    """how tensors' names begin that only files of this line hold, and of those that name it, too"""
    card: str = "Unknown"
    """what A1111 and Forge call it"""
    v2: bool = False
    """kohya's ss_v2"""


class FewSteps(NamedTuple):
    """What a scheduler of few-step models and adapters (LCM-LoRA, TCD-LoRA) needs beside its name."""

    steps: int
    """usually"""
    guidance: float
    """usually; 1: none, as it was distilled in"""
    most: int
    """steps that it can take: those of the model that was distilled"""
    call: Mapping[str, float] = {}
    """what its pipeline is told; it would otherwise be told what is right for DDIM"""


class OriginalName(NamedTuple):
    """A module in the code that a model was published with, which may hold several of diffusers' in one."""

    name: str
    piece: int = 0
    """which of those, in the order of its rows"""


class Moments(NamedTuple):
    """The autoencoder's distribution over latents, each (b, c, h, w), float32, not yet scaled; of videos
    (b, c, frames, h, w)."""

    mean: Tensor
    logvar: Tensor


class Text(NamedTuple):
    """Encoded captions."""

    tokens: Tensor
    """(b, n, d)"""
    pooled: Tensor | None = None
    """(b, p)"""
    mask: Tensor | None = None
    """(b, n), True where there is a token; None: everywhere"""

    def each(self, change: Callable[[Tensor], Tensor]) -> "Text":
        return Text(*(None if part is None else change(part) for part in self))  # type: ignore[arg-type]

    def beside(self, other: "Text") -> "Text":
        """Both in one batch, this one first."""
        rows = [
            [None if part is None else part[i] for part in text]
            for text in (self, other)
            for i in range(len(text.tokens))
        ]
        return Text.stacked([Text(*row) for row in rows])  # type: ignore[arg-type]

    @staticmethod
    def stacked(singles: Sequence["Text"]) -> "Text":
        """A batch of captions encoded each by itself, without a batch axis; shorter ones are filled up and masked."""
        pad = torch.nn.utils.rnn.pad_sequence
        pooled = [one.pooled for one in singles if one.pooled is not None]
        masks = [one.mask for one in singles if one.mask is not None]
        return Text(
            pad([one.tokens for one in singles], batch_first=True),
            torch.stack(pooled) if pooled else None,
            pad(masks, batch_first=True) if masks else None,
        )


class PromptImage(Protocol):
    """A picture beside a caption, such as the one to edit; opened when it is asked for."""

    @property
    def path(self) -> Path: ...

    @property
    def digest(self) -> str:
        """SHA-256 of the file's bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """What text encoders read: a caption, and of an editing base the control pictures beside it."""

    caption: str
    images: tuple[PromptImage, ...] = ()

    @property
    def key(self) -> str:
        """What tells prompts apart: the caption, and the digests of the pictures."""
        return "\0".join((self.caption, *(image.digest for image in self.images)))

    def pixels(self) -> list[Tensor]:
        """Each picture whole, (3, H, W) in [-1, 1]. Raises DataError where one is not what its digest says."""
        opened = (decode.open_rgb(image.path, digest=image.digest) for image in self.images)
        return [torch.from_numpy(to_array(image)) for image in opened]

    @staticmethod
    def of(example: Example, caption: str | None = None) -> "Prompt":
        """An example's own caption, or another in its place, beside its control pictures."""
        return Prompt(example.caption if caption is None else caption, example.controls)


class Conditioning(NamedTuple):
    """All that a prediction is given beside the noisy latents and their times."""

    text: Text
    size: Tensor | None = None
    """(b, 6), as `buckets.SizeConditioning`: how each picture was cut; None: not at all"""
    control: tuple[Tensor, ...] = ()
    """scaled latents of the control pictures, each (b, c, ..., h, w); (): none, which every family can do without"""
    guidance: float | None = None
    """that the denoiser of a base with `guided` facts is told; None: the family's own"""


class Family(Protocol):
    name: ClassVar[str]
    denoiser_name: ClassVar[str]
    """what adapter files call the denoiser: unet, transformer"""
    blocks: ClassVar[tuple[str, ...]]
    """patterns of the names of the denoiser's repeated blocks, in the order in which they are run"""
    original_blocks: ClassVar[tuple[str, ...]]
    """the same in the code that the model was published with, where it has others"""
    lines: ClassVar[tuple[ModelLine, ...]]
    """of models that the family trains"""
    encoders: ClassVar[tuple[str, ...]]
    """names of the text encoders, in the order in which `combine` takes what they made"""
    presets: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]]
    """each component that can be trained -> name a recipe may use for adapter.targets -> module patterns"""
    adapted: ClassVar[tuple[str, ...]]
    """text encoders that are not trained here, and that adapters of other programs change"""
    layout: ClassVar[Literal["kohya", "diffusers"]]
    """the names that every reader of this family's adapters knows"""
    readers: ClassVar[tuple[Reader, ...]]
    """programs that apply its adapter files as they were trained"""
    schedulers: ClassVar[Mapping[str, str]]
    """a name for users -> diffusers' class"""
    few_steps: ClassVar[Mapping[str, FewSteps]]
    """those of them that are for few steps"""

    base: str
    facts: BaseInfo
    process: Process
    parts: Parts
    """denoiser, vae and text encoders, each loaded when it is first asked for"""
    guidance: float
    """what the denoiser of a base with facts.guided is told where `Conditioning` says nothing"""

    @classmethod
    def detect(cls, base: str) -> BaseInfo | None:
        """None when the base is of another family. Raises BaseError when it is broken."""
        ...

    @classmethod
    def load(cls, base: str, facts: BaseInfo, dtype: torch.dtype, text_bits: int | None = None) -> Self:
        """Parts come to the CPU, frozen, in evaluation mode: denoiser and text encoders in dtype, the autoencoder in
        float32; text encoders that cannot be trained in so many bits, when said."""
        ...

    @classmethod
    def around(cls, base: str, facts: BaseInfo, parts: Parts) -> Self:
        """The family around these parts, whatever they hold, to predict with: no weight and no tokenizer is read."""
        ...

    @classmethod
    def on_meta(cls, base: str, facts: BaseInfo, names: Sequence[str] | None = None) -> dict[str, nn.Module]:
        """Each component that can be trained, or these, on the meta device, to count and to find targets in."""
        ...

    @classmethod
    def tokenizer(cls, base: str) -> Any:
        """The transformers tokenizer that decides which part of a caption is read, without its models."""
        ...

    @classmethod
    def overhead(cls, tokenizer: Any) -> int:
        """How many of facts.max_tokens are not the caption's."""
        ...

    @classmethod
    def published(cls, facts: BaseInfo) -> Labels: ...

    @classmethod
    def kohya_name(cls, name: str) -> str:
        """Canonical module name -> kohya's."""
        ...

    @classmethod
    def original(cls, name: str) -> OriginalName | None:
        """Canonical module name -> where the original code has it, when other names than diffusers' are in use."""
        ...

    def fingerprint(self, part: str) -> str:
        """A short hash of all that decides what a part computes, weights as loaded."""
        ...

    def encode_images(self, pixels: Tensor) -> Moments:
        """pixels (b, 3, H, W) in [-1, 1]."""
        ...

    def latents(self, moments: Moments, noise: Tensor) -> Tensor:
        """A draw from the distribution, scaled for the denoiser. (b, c, h, w), float32."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents -> pixels (b, 3, H, W), about [-1, 1]."""
        ...

    def encode(self, encoder: str, prompts: Sequence[Prompt]) -> Text:
        """What one text encoder makes of prompts."""
        ...

    def combine(self, texts: Sequence[Text]) -> Text:
        """What the denoiser reads, of what each encoder made."""
        ...

    def predict(self, noisy: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        """noisy (b, c, h, w), of videos (b, c, frames, h, w); t (b,) times of the process -> the process's prediction,
        like noisy."""
        ...

    def pipeline(self, scheduler: str = "", safety: bool = False) -> Any:
        """diffusers' own pipeline around these very modules; scheduler: "" for the base's own.

        safety: with the base's safety checker, when it has one. Raises KeyError: no such scheduler for this family.
        """
        ...

    def pipeline_inputs(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        """What the pipeline is called with, to paint captions; guidance 1: none."""
        ...

    def unpack_latents(self, painted: Tensor, width: int, height: int) -> Tensor:
        """The pipeline's latents of pictures of that size in px -> scaled latents (b, c, h, w)."""
        ...

    def has_safety_checker(self) -> bool: ...


def components(family: Family) -> dict[str, nn.Module]:
    """Each part that can be trained, loaded."""
    return {name: family.parts[name] for name in family.presets}


def adaptable(family: Family | type[Family]) -> list[str]:
    """Each part that an adapter file may change: those that can be trained, and those that only others train."""
    return [*family.presets, *family.adapted]


def large_encoders(family: Family | type[Family]) -> list[str]:
    """Text encoders that cannot be trained: they are needed to read captions, and let go after."""
    return [encoder for encoder in family.encoders if encoder not in family.presets]


def as_prompts(said: Iterable[Prompt | str]) -> list[Prompt]:
    """A bare caption is a prompt without pictures."""
    return [Prompt(one) if isinstance(one, str) else one for one in said]


def read(family: Family, prompts: Sequence[Prompt | str], known: Mapping[str, Text] | None = None) -> Text:
    """Encoded prompts; known: encoder -> what it made of them before."""
    known, whole = known or {}, as_prompts(prompts)
    return family.combine([known[e] if e in known else family.encode(e, whole) for e in family.encoders])


def save(family: Family, folder: Path, dtype: torch.dtype) -> None:
    """Write the whole base as diffusers' pipeline folder; the modules keep their own dtypes."""
    kept = copy.copy(family)
    kept.parts = family.parts.copied(dtype)
    kept.pipeline().save_pretrained(folder, safe_serialization=True)


def checkpoint_gradients(family: Family, names: Iterable[str]) -> None:
    """Trade time for memory: recompute these components' activations in the backward pass."""
    for name in names:
        if name == family.denoiser_name:
            cast(Any, family.parts[name]).enable_gradient_checkpointing()
        else:
            checkpoint_text(family.parts[name])


class evaluation_mode:
    """Evaluation mode for every part in memory inside the block, and as it was after."""

    def __init__(self, family: Family) -> None:
        self.modules: list[tuple[nn.Module, bool]] = [
            (m, m.training) for part in family.parts.loaded().values() for m in part.modules()
        ]

    def __enter__(self) -> None:
        for module, _ in self.modules:
            module.training = False

    def __exit__(self, *_: object) -> None:
        for module, was in self.modules:
            module.training = was
