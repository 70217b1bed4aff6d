"""A family as a table: the parts of a diffusers pipeline folder, and the verbs that follow from that table alone.

Shapes: b batch, H W pixels, h w latent cells, c latent channels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from finetune.diffusion.process import Process
from finetune.errors import BaseError
from finetune.families import autoencoder, declared, parts, sizes
from finetune.families.base import BaseInfo, FewSteps, ModelLine, Moments, OriginalName, Text
from finetune.families.parts import Parts
from finetune.families.readers import DIFFUSERS, Reader


def _unmarked(module: nn.Module) -> nn.Module:
    return module


class Part(NamedTuple):
    """A module of the pipeline, in a subfolder of its name."""

    kind: str
    """library:class, as the pipeline names it"""
    marked: Callable[[nn.Module], nn.Module] = _unmarked
    """marks the layers whose output the denoiser never reads"""
    large: bool = False
    """may be held in fewer bits: a text encoder that is too large to be trained"""

    @property
    def file(self) -> str:
        """Of its weights."""
        return "diffusion_pytorch_model.safetensors" if self.kind.startswith("diffusers:") else "model.safetensors"

    def module_class(self) -> Any:
        library, _, name = self.kind.partition(":")
        return getattr(import_module(library), name)

    def built(self, config: Mapping[str, Any]) -> nn.Module:
        """The module of that configuration, with weights that are not the base's. Raises BaseError: it cannot be."""
        kind = self.module_class()
        try:
            if self.kind.startswith("diffusers:"):
                return self.marked(kind.from_config(config))
            return self.marked(kind(kind.config_class.from_dict(config)))
        except Exception as e:  # a configuration may hold anything, and is checked nowhere else
            said = (str(e).splitlines() or [type(e).__name__])[0][:200]
            raise BaseError(f"the configuration of {self.kind.partition(':')[2]} cannot be built: {said}",
                            "fetch the base again") from e  # fmt: skip


class Tokenizer(NamedTuple):
    """Of a text encoder."""

    folder: str
    kind: str
    """transformers' class"""
    vocabulary: tuple[str, ...]
    """the files that make it up where there is no tokenizer.json"""

    def check(self, path: Path) -> None:
        """Raises BaseError when its vocabulary is not in the diffusers folder `path`."""
        parts.check_vocabulary(path / self.folder, *self.vocabulary)

    def load(self, path: Path) -> Any:
        """Raises BaseError when it cannot be loaded."""
        import transformers

        self.check(path)
        try:
            kind = getattr(transformers, self.kind)
            return kind.from_pretrained(
                str(path), subfolder=self.folder, local_files_only=True, trust_remote_code=False
            )  # fmt: skip
        except Exception as e:  # the tokenizers library raises bare Exceptions
            problem = f"{path / self.folder} cannot be loaded: {(str(e).splitlines() or [type(e).__name__])[0][:200]}"
            raise BaseError(problem, "fetch the base again") from e


def chat_form(tokenizer: Any, turns: Sequence[Mapping[str, object]], **options: object) -> str:
    """A chat in the model's own form. Its template is a program of others, which transformers runs in a sandbox.

    Raises:
        BaseError: it cannot be made, or tries to leave the sandbox.
    """
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options))
    except Exception as e:  # whatever the template does wrong
        said = (str(e).splitlines() or [type(e).__name__])[0][:200]
        raise BaseError(f"the chat template of {type(tokenizer).__name__} fails: {said}", "fetch the base again") from e


def clip_tokenizer(folder: str = "tokenizer") -> Tokenizer:
    return Tokenizer(folder, "CLIPTokenizer", ("vocab.json", "merges.txt"))


def t5_tokenizer(folder: str) -> Tokenizer:
    return Tokenizer(folder, "T5TokenizerFast", ("spiece.model",))


def language_tokenizer(folder: str = "tokenizer") -> Tokenizer:
    return Tokenizer(folder, "AutoTokenizer", ("vocab.json", "merges.txt"))


class Source(Protocol):
    """Where a base's parts are read from, each when it is asked for."""

    def config(self, part: str) -> dict[str, Any]: ...

    def files(self, name: str, part: Part) -> list[Path]:
        """What a part is read from."""
        ...

    def load(self, name: str, part: Part, dtype: torch.dtype, bits: int | None) -> nn.Module:
        """Raises BaseError: the part is not there as a whole."""
        ...

    def tokenizer(self, tokenizer: Tokenizer) -> Any: ...

    def scheduler(self) -> dict[str, Any]:
        """The configuration of the base's own scheduler."""
        ...


class Folder(NamedTuple):
    """A diffusers folder."""

    path: Path

    def config(self, part: str) -> dict[str, Any]:
        return parts.config(self.path / part / "config.json")

    def files(self, name: str, part: Part) -> list[Path]:
        folder = self.path / name
        return [folder / "config.json", *parts.weight_files(folder / part.file)]

    def load(self, name: str, part: Part, dtype: torch.dtype, bits: int | None) -> nn.Module:
        return part.marked(parts.from_pretrained(part.module_class(), self.path, name, dtype, bits))

    def tokenizer(self, tokenizer: Tokenizer) -> Any:
        return tokenizer.load(self.path)

    def scheduler(self) -> dict[str, Any]:
        found = parts.config(file := self.path / "scheduler" / "scheduler_config.json")
        sizes.check_numbers(found, str(file))
        return found


class DiffusersFolder:
    """A family whose bases are folders of one diffusers pipeline; what a class of its own must add stands first."""

    name: ClassVar[str]
    PIPELINE: ClassVar[str]
    """diffusers' class"""
    PARTS: ClassVar[Mapping[str, Part]]
    """the pipeline's modules, under its own names for them"""
    TOKENIZERS: ClassVar[Mapping[str, Tokenizer]]
    """text encoder -> its tokenizer; the last one decides which part of a caption is read"""
    denoiser_name: ClassVar[str]
    blocks: ClassVar[tuple[str, ...]]
    original_blocks: ClassVar[tuple[str, ...]] = ()
    lines: ClassVar[tuple[ModelLine, ...]]
    encoders: ClassVar[tuple[str, ...]]
    presets: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]]
    adapted: ClassVar[tuple[str, ...]] = ()
    layout: ClassVar[Literal["kohya", "diffusers"]]
    readers: ClassVar[tuple[Reader, ...]] = (DIFFUSERS,)
    schedulers: ClassVar[Mapping[str, str]]
    few_steps: ClassVar[Mapping[str, FewSteps]] = {}

    @classmethod
    def facts_of(cls, path: Path) -> BaseInfo:
        """What a folder holds, by its configs alone."""
        raise NotImplementedError

    @classmethod
    def process_of(cls, scheduler: Mapping[str, Any], facts: BaseInfo) -> Process:
        """Raises BaseError: the scheduler is of another kind."""
        raise NotImplementedError

    def scheduler(self, named: str) -> Any:
        """diffusers' scheduler of that name in `schedulers`; "": the base's own. Raises KeyError: no such one."""
        raise NotImplementedError

    def __init__(self, base: str, facts: BaseInfo, parts: Parts, tokenizers: Mapping[str, Any]) -> None:
        self.base, self.facts, self.parts, self.tokenizers = base, facts, parts, tokenizers
        self.scheduler_config = self.source(base).scheduler()
        self.process = self.process_of(self.scheduler_config, facts)
        self.guidance = 1.0

    @classmethod
    def source(cls, base: str) -> Source:
        return Folder(Path(base))

    @classmethod
    def detect(cls, base: str) -> BaseInfo | None:
        path = Path(base)
        if parts.pipeline_name(path) != cls.PIPELINE:
            return None
        declared.refuse_other_parts(path, {name: part.kind for name, part in cls.PARTS.items()})
        for name, part in cls.PARTS.items():
            parts.check_complete(path / name / part.file)
        for tokenizer in cls.TOKENIZERS.values():
            tokenizer.check(path)
        facts, scheduler = cls.facts_of(path), Folder(path).scheduler()
        cls.process_of(scheduler, facts)  # what cannot be trained is refused before it is loaded
        return facts._replace(unused=tuple(cls.unread(path, str(scheduler.get("_class_name")))))

    @classmethod
    def unread(cls, path: Path, scheduler: str) -> Iterator[str]:
        """Keys of a folder's configurations that nothing takes; scheduler: its own."""
        folders = [*cls.PARTS, *(one.folder for one in cls.TOKENIZERS.values())]
        kinds = {name: part.kind.partition(":") for name, part in cls.PARTS.items()}
        own = {name: kind for name, (library, _, kind) in kinds.items() if library == "diffusers"}
        return declared.unread(path, folders, own, {*cls.schedulers.values(), scheduler})

    @classmethod
    def load(cls, base: str, facts: BaseInfo, dtype: torch.dtype, text_bits: int | None = None) -> Self:
        source = cls.source(base)
        loaders = {
            name: partial(
                source.load, name, part, torch.float32 if name == "vae" else dtype, text_bits if part.large else None
            )
            for name, part in cls.PARTS.items()
        }
        files = {name: source.files(name, part) for name, part in cls.PARTS.items()}
        return cls(base, facts, Parts(loaders, files), {e: source.tokenizer(one) for e, one in cls.TOKENIZERS.items()})

    @classmethod
    def around(cls, base: str, facts: BaseInfo, parts: Parts) -> Self:
        return cls(base, facts, parts, {})

    @classmethod
    def on_meta(cls, base: str, facts: BaseInfo, names: Sequence[str] | None = None) -> dict[str, nn.Module]:
        source = cls.source(base)
        with torch.device("meta"):
            return {
                name: cls.PARTS[name].built(source.config(name)) for name in (cls.presets if names is None else names)
            }

    @classmethod
    def tokenizer(cls, base: str) -> Any:
        return cls.source(base).tokenizer(cls.TOKENIZERS[cls.encoders[-1]])

    @classmethod
    def overhead(cls, tokenizer: Any) -> int:
        return int(tokenizer.num_special_tokens_to_add())

    @classmethod
    def kohya_name(cls, name: str) -> str:
        return "lora_" + name.replace(".", "_")

    @classmethod
    def original(cls, name: str) -> OriginalName | None:
        return None

    def reading(self, tokenizer: Any) -> tuple[object, ...]:
        """What decides, beside encoder and vocabulary, how a caption is read."""
        return ()

    def fingerprint(self, part: str) -> str:
        words = self.tokenizers.get(part)
        also = [sorted(words.get_vocab().items()), *self.reading(words)] if words else []
        also += ["frames", self.facts.frames] if part == "vae" and self.facts.frames else []  # clips are kept as such
        return parts.fingerprint(self.parts[part], *also)

    def encode_images(self, pixels: Tensor) -> Moments:
        return autoencoder.encode(self.parts["vae"], pixels)

    def latents(self, moments: Moments, noise: Tensor) -> Tensor:
        return autoencoder.latents(self.parts["vae"], moments, noise)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return autoencoder.decode(self.parts["vae"], latents)

    def combine(self, texts: Sequence[Text]) -> Text:
        return texts[0]

    @classmethod
    def pipeline_class(cls) -> Any:
        import diffusers

        return getattr(diffusers, cls.PIPELINE)

    def pipeline(self, scheduler: str = "", safety: bool = False) -> Any:
        modules = {name: self._asked_for(name) for name in self.PARTS}
        words = {one.folder: self.tokenizers[encoder] for encoder, one in self.TOKENIZERS.items()}
        own = self.pipeline_options(safety)
        pipeline = self.pipeline_class()(**modules, **words, **own, scheduler=self.scheduler(scheduler))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _asked_for(self, name: str) -> nn.Module | None:
        """A part; large encoders only if they are in memory, since prompts come encoded."""
        untrained = name in self.encoders and name not in self.presets
        return self.parts.loaded().get(name) if untrained else self.parts[name]

    def pipeline_options(self, safety: bool) -> dict[str, Any]:
        """What the pipeline is made with beside parts, tokenizers and scheduler."""
        return {}

    def unpack_latents(self, painted: Tensor, width: int, height: int) -> Tensor:
        return painted

    def has_safety_checker(self) -> bool:
        return False
