"""A base with adapters, opened once, that generates pictures by diffusers' own pipeline."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from finetune import families, reading
from finetune.adapters.attach import known_in_full
from finetune.adapters.change import AdapterState, target_shapes
from finetune.diffusion.process import Prediction
from finetune.encoding.text import Captions, read_ahead
from finetune.errors import InputError, VerifyError, action
from finetune.families.base import (
    BaseInfo,
    Family,
    Prompt,
    Text,
    adaptable,
    as_prompts,
    evaluation_mode,
    large_encoders,
)  # fmt: skip
from finetune.files import layouts
from finetune.machine import CPU, DTYPES, Autocast, current_device
from finetune.planning.resolve import precision as resolve_precision
from finetune.resources import public_name
from finetune.sampling.request import USUAL, AdapterWeight, SampleRequest, SessionOptions
from finetune.tensors import digest, file_sha256, read_header
from finetune.unchanged import unchanged

_BARE = SessionOptions(safety_checker=False)
BATCH_PX = {"cpu": 12 * 64**2, "cuda": 1024**2}
"""px that one batch of pictures has at most; a larger picture is generated alone. On a CPU 12 pictures of 64 px are
fastest, at 1.8 times the speed of one by one; 24 are slower again. On a GPU a batch takes no more memory than one
picture of 1024 px."""


class Picture(NamedTuple):
    image: Image.Image
    blocked: bool
    """The base's safety checker took it for unsafe and blanked it."""


class Session:
    """Prompts are encoded once each; the large text encoders are unloaded when they have read them."""

    def __init__(
        self, family: Family, captions: Captions | None = None, device: torch.device = CPU,
        autocast: Autocast = nullcontext, options: SessionOptions = _BARE,
    ) -> None:  # fmt: skip
        """Around a family whose parts are on the device already, and captions that were encoded already."""
        self.family, self.device, self.autocast = family, device, autocast
        self.captions = captions or Captions(family, {}, device)
        self.pipeline = family.pipeline(options.scheduler, options.safety_checker)
        few = [one for name, one in family.few_steps.items() if self._is(family.schedulers[name])]
        self._told = dict(few[0].call) if few else {}
        """what the scheduler needs to be told for each picture"""
        self.made_with: dict[str, str] = {}
        """What a picture's metadata says of base, adapters and options."""
        self._adapted: list[str] = []
        """files whose change is applied"""
        self._kept: set[str] = set()
        """text encoders that are not unloaded, since an adapter changes what they read"""
        self._texts: dict[tuple[str, str], Text] = {}
        """(encoder, prompt) -> what the session read itself, without a batch axis"""

    @classmethod
    def of(cls, family: Family, prompts: Iterable[str], device: torch.device | None = None) -> "Session":
        """Around a family just opened: its prompts are read, then its parts are moved to the device."""
        device = device or current_device()
        session = cls(family, read_ahead(family, prompts, device), device)
        session._move()
        return session

    @classmethod
    def open(
        cls, base: str, prompts: Iterable[str], adapters: Sequence[AdapterWeight] = (),
        options: SessionOptions = USUAL, info: BaseInfo | None = None,
    ) -> "Session":  # fmt: skip
        """Open a base, read the prompts (and negative prompts) ahead, then load adapters by our strict reader.

        Raises:
            InputError: this base or this machine cannot do what the options say.
            VerifyError: an adapter cannot be read whole for this base. BaseError: a file was changed meanwhile.
        """
        info = _settled(info or families.detect(base), adapters, options)
        check_options(base, info, options)
        device = current_device()
        precision = resolve_precision(options.precision, "`precision`")
        family = _load(base, info, options, DTYPES[precision])
        families.refuse_unknown(base, family.facts)
        info = family.facts
        captions = read_ahead(family, prompts, device)
        rounded = options.merged and precision != "fp32"  # adapters are merged in float32, then weights are rounded
        if rounded:
            family = _load(base, info, options, torch.float32)
            captions = Captions(family, captions.known, device)
        session = cls(family, captions, device, options=options)
        with unchanged(file for adapter in adapters for file in layouts.adapter_files(adapter.path)):
            session.load_adapters(adapters, options.merged)
            session.made_with = _described(base, session, adapters, options, precision)
        if rounded:
            for name in family.parts.loaded().keys() - {"vae"}:
                family.parts[name].to(DTYPES[precision])
        session._move()
        return session

    def load_adapters(self, adapters: Sequence[AdapterWeight], merged: bool = False) -> None:
        """Apply adapter files, read by our own strict reader; live, or merged into the weights in float32.

        Raises:
            VerifyError: a file cannot be read whole for this base.
        """
        if not adapters:
            return
        names = [f"adapter_{i}" for i in range(len(adapters))]
        shapes = self._places()
        for name, adapter in zip(names, adapters, strict=True):
            changes = _read_strictly(adapter.path, shapes, self.family)
            self._keep({part.partition(".")[0] for part in changes}.intersection(self.family.adapted))
            state = layouts.for_pipeline(changes, torch.float32, self.family.name)
            self.pipeline.load_lora_weights(state, adapter_name=name)
        self.pipeline.set_adapters(names, [adapter.weight for adapter in adapters])
        if merged:
            loaded = self.family.parts.loaded()
            changed = [name for name, part in loaded.items() if getattr(part, "peft_config", None)]
            self.pipeline.fuse_lora(components=changed, adapter_names=names)
            self.pipeline.unload_lora_weights()
        self._adapted = [adapter.path.name for adapter in adapters]
        self._texts.clear()

    def _places(self) -> dict[str, tuple[int, ...]]:
        """canonical name -> weight shape of all that an adapter may change; before one hides some of them."""
        there = self.family.parts.loaded()
        absent = [name for name in adaptable(self.family) if name not in there]
        skeletons = type(self.family).on_meta(self.family.base, self.family.facts, absent)
        return target_shapes({name: there.get(name) or skeletons[name] for name in adaptable(self.family)})

    def _keep(self, encoders: set[str]) -> None:
        """Have these text encoders in memory, in the pipeline, and asked for each prompt."""
        for encoder in encoders - self._kept:
            self.family.parts.load(encoder).to(self.device, encoder)
            self.pipeline.register_modules(**{encoder: self.family.parts[encoder]})
            known = {name: texts for name, texts in self.captions.known.items() if name != encoder}
            self.captions = Captions(self.family, known, self.device)
            self._kept.add(encoder)

    def exchange(self, adapters: Sequence[AdapterWeight]) -> None:
        """These adapters in place of those that are applied; none: the base alone.

        Raises:
            VerifyError: a file cannot be read whole for this base.
        """
        if self._adapted:
            self.pipeline.unload_lora_weights()
        self._adapted = []
        self._texts.clear()
        self.load_adapters(adapters)

    def load_by_diffusers(self, file: Path) -> None:
        """Apply an adapter file as stock diffusers reads it."""
        with known_in_full(self.family.parts.loaded().values()):
            self.pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
        self._adapted = [file.name]
        self._texts.clear()

    def read(self, prompts: Iterable[str]) -> None:
        """Encode those prompts that large text encoders have not read yet, and unload these encoders again."""
        known = dict(self.captions.known)
        large = [encoder for encoder in large_encoders(self.family) if encoder not in self._kept]
        unread = [p for p in as_prompts(list(prompts)) if any(p.key not in known.get(e, ()) for e in large)]
        if unread:
            for encoder, texts in read_ahead(self.family, unread, self.device, self._kept).known.items():
                known[encoder] = {**known.get(encoder, {}), **texts}
            self.captions = Captions(self.family, known, self.device)

    def generate(self, request: SampleRequest) -> Picture:
        """One picture. Leaves modules, their dtypes and torch's random state as they were."""
        return self.generate_together([request])[0]

    def generate_many(self, requests: Iterable[SampleRequest]) -> Iterator[Picture]:
        """A picture for each request, in their order, as they come: in batches of up to BATCH_PX where requests in a
        row differ in prompt, negative prompt and seed only; equal to `generate` but for rounding."""
        for kind, alike in groupby(requests, _kind):
            together = max(1, BATCH_PX[self.device.type] // (kind.width * kind.height))
            while batch := list(islice(alike, together)):
                yield from self.generate_together(batch)

    def generate_together(self, requests: Sequence[SampleRequest]) -> list[Picture]:
        """Several pictures in one batch, each from its own seed; faster, and equal to `generate` but for rounding.

        Raises:
            InputError: they differ in more than prompt, negative prompt and seed.
        """
        first = requests[0]
        if len(set(map(_kind, requests))) > 1:
            raise InputError("pictures of one batch differ in steps, guidance or size", "generate them one by one")
        self.read([text for r in requests for text in (r.prompt, r.negative)])
        chances = [torch.Generator("cpu").manual_seed(r.seed) for r in requests]
        with torch.no_grad(), torch.random.fork_rng(), evaluation_mode(self.family), self.autocast():
            text, negative = self._encoded([r.prompt for r in requests]), self._encoded([r.negative for r in requests])
            inputs = self.family.pipeline_inputs(text, negative, first.guidance)
            output = self.pipeline(
                **inputs, num_inference_steps=first.steps, width=first.width, height=first.height,
                output_type="latent", generator=chances if len(chances) > 1 else chances[0], **self._told,
            ).images  # fmt: skip
        latents = self.family.unpack_latents(output, first.width, first.height).to(self.device)
        # one at a time: decoding takes far more memory than denoising. In float32: half overflows some autoencoders
        return [self._shown(self._finite(self.family.decode_latents(one))) for one in latents.unsqueeze(1)]

    def _is(self, scheduler: str) -> bool:
        """diffusers' class of that name is the pipeline's, chosen or the base's own."""
        return type(self.pipeline.scheduler).__name__ == scheduler

    def _encoded(self, prompts: Sequence[str]) -> Text:
        read = {e: {p: self._text(e, p) for p in prompts} for e in self.family.encoders}
        return Captions(self.family, read, self.device).read(prompts)

    def _text(self, encoder: str, prompt: str) -> Text:
        """What one encoder makes of a prompt by itself, without a batch axis."""
        known = self.captions.known.get(encoder, {})
        if prompt in known:
            return known[prompt]
        if (encoder, prompt) not in self._texts:
            made = self.family.encode(encoder, [Prompt(prompt)])
            self._texts[encoder, prompt] = made.each(lambda part: part[0].cpu())  # a GPU has no room for many
        return self._texts[encoder, prompt]

    def _finite(self, pixels: torch.Tensor) -> torch.Tensor:
        """Raises VerifyError for what would be a black picture."""
        if bool(pixels.isfinite().all()):
            return pixels
        if self._adapted:
            raise VerifyError(
                f"a picture came out with values that are not finite, with {' and '.join(self._adapted)}",
                "lower its weight; if the base alone gives pictures, the adapter is damaged",
            )
        raise VerifyError(
            f"a picture came out with values that are not finite: {self.family.base} computes none in this precision",
            "try `precision` fp32; if that fails too, its weights are damaged: fetch the base again",
        )

    def _shown(self, pixels: torch.Tensor) -> Picture:
        """pixels (1, 3, H, W), about [-1, 1] -> the picture, blanked if it is unsafe."""
        [image] = self.pipeline.image_processor.postprocess(pixels.cpu(), output_type="pil")
        if getattr(self.pipeline, "safety_checker", None) is None:
            return Picture(image, False)
        inputs = self.pipeline.feature_extractor([image], return_tensors="pt").pixel_values.to(self.device)
        arrays = self.pipeline.image_processor.postprocess(pixels.cpu(), output_type="np")
        checked, [flagged] = self.pipeline.safety_checker(images=arrays, clip_input=inputs)
        return Picture(self.pipeline.image_processor.numpy_to_pil(checked)[0], bool(flagged))

    def _move(self) -> None:
        self.family.parts.to(self.device)
        if checker := getattr(self.pipeline, "safety_checker", None):
            checker.to(self.device)


def _kind(request: SampleRequest) -> SampleRequest:
    """What requests of one batch have in common."""
    return request._replace(prompt="", negative="", seed=0)


def check_options(base: str, info: BaseInfo, options: SessionOptions) -> None:
    """Raises InputError when a base cannot be opened so."""
    kind = families.family_class(info.family)
    if options.scheduler and options.scheduler not in kind.schedulers:
        few = any(options.scheduler in families.family_class(name).few_steps for name in families.registry())
        why = ": it is for bases with a UNet, and this one is a flow" if few else ""
        one_of = f"one of {', '.join(kind.schedulers)}"
        raise InputError(f"no scheduler {options.scheduler!r} for {base}{why}", one_of)
    if options.text_encoder_bits and not large_encoders(kind):
        raise InputError(f"`text_encoder_bits`: {base} has no large text encoder", "leave it out")
    if options.base_bits and options.merged:
        raise InputError(
            "`merged`: an adapter cannot be merged into 4-bit weights", "leave out `merged` or `base_bits`"
        )


def _settled(info: BaseInfo, adapters: Sequence[AdapterWeight], options: SessionOptions) -> BaseInfo:
    """What a silent base predicts, by whoever trained on it."""
    if info.prediction_known:
        return info
    said = [(options.prediction, "the recipe"), *((_trained_for(one.path), one.path.name) for one in adapters)]
    known: Prediction
    for known in ("epsilon", "v"):
        if by := next((by for one, by in said if one == known), None):
            return info.settled(known, by)
    return info


def _trained_for(file: Path) -> str:
    """What an adapter file says that its base predicts; empty: nothing."""
    metadata = read_header(file).metadata if reading.is_file(file) else {}
    return metadata.get("finetune.prediction", "")


def _load(base: str, info: BaseInfo, options: SessionOptions, dtype: torch.dtype) -> Family:
    return families.load(base, dtype, info, text_bits=options.text_encoder_bits, base_bits=options.base_bits)


def _read_strictly(file: Path, shapes: dict[str, tuple[int, ...]], family: Family) -> AdapterState:
    found = layouts.read_adapter(file, shapes, family.name)
    mismatches = [n for n, module in found.modules.items() if module.shape != shapes[n]]
    problems = [*found.problems, *(f"{n}: not of the base's shape" for n in mismatches)]
    if problems or not found.modules:
        raise VerifyError(
            f"{file}: {(problems or ['it holds no changes'])[0]}",
            "see all that is wrong with it",
            action("verify", file=file, base=family.base),
        )
    return found.modules


def _described(
    base: str, session: Session, adapters: Sequence[AdapterWeight], options: SessionOptions, precision: str
) -> dict[str, str]:
    return {
        "base": public_name(base), "scheduler": type(session.pipeline.scheduler).__name__,
        "adapters": ", ".join(f"{a.path.name}:{a.weight:g} sha256 {_sha256(a.path)[:12]}" for a in adapters),
        "merged": "yes" if options.merged and adapters else "",
        "precision": f"{precision}, base in 4 bits" if options.base_bits else precision,
        "safety checker": _safety(options.safety_checker, session.family.has_safety_checker()),
    }  # fmt: skip


def _safety(wanted: bool, has: bool) -> str:
    if not has:
        return "the base has none"
    return "on" if wanted else "switched off"


def _sha256(path: Path) -> str:
    """Of the file; of a folder, over its weight files."""
    if reading.is_file(path):
        return file_sha256(path)
    files = sorted(layouts.adapter_in(path).rglob("*.safetensors"))
    return digest("".join(map(file_sha256, files)))
