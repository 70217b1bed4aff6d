"""Stable Diffusion 1.x and 2.x: a UNet with cross-attention to one CLIP text encoder.

Sources: arXiv:2112.10752; the pipeline and block structure are diffusers' StableDiffusionPipeline.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from finetune import weights
from finetune.errors import BaseError
from finetune.families import checkpoints
from finetune.families.base import Facts, Moments, Text
from finetune.process import Prediction, Process, betas, discrete

Part = Literal["unet", "vae", "text_encoder"]
PIPELINE = "StableDiffusionPipeline"
WEIGHTS: dict[Part, str] = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}


_VOCABULARY = ("vocab.json", "merges.txt")
_ITS_SCHEDULER = "Stable Diffusion 1.x and 2.x have neither: is scheduler_config.json the base's own?"
_SAYS_NOTHING = ("dtype", "torch_dtype", "transformers_version", "architectures")
"""of a component's config: differs by library version and precision, and changes no output"""
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
_RESNETS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.*.conv", "upsamplers.*.conv")
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_TEXT_ALL = (*_TEXT_ATTENTION, "fc1", "fc2")


class StableDiffusion:
    name: ClassVar[str] = "sd"
    denoiser_name: ClassVar[str] = "unet"
    presets: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "unet": {
            "attention": _ATTENTION,
            "attention+ff": (*_ATTENTION, *_FEED_FORWARD),
            # not conv_in, conv_out, time_embedding: kohya's reader drops those without a word
            "all": (*_ATTENTION, *_FEED_FORWARD, *_RESNETS),
        },
        "text_encoder": {"attention": _TEXT_ATTENTION, "attention+ff": _TEXT_ALL, "all": _TEXT_ALL},
    }

    def __init__(
        self, base: str, facts: Facts, unet: nn.Module, vae: nn.Module, text_encoder: nn.Module, tokenizer: Any,
        scheduler_config: dict[str, Any],
    ) -> None:  # fmt: skip
        self.base, self.facts = base, facts
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        self.tokens, self.scheduler_config = tokenizer, scheduler_config
        self.process: Process = _process(scheduler_config, facts)
        self._compiled: Any = None
        for module in (unet, vae, text_encoder):
            module.requires_grad_(False).eval()

    @classmethod
    def detect(cls, base: str) -> Facts | None:
        path = Path(base)
        if path.is_file():
            found = checkpoints.open_checkpoint(path)
            folder = checkpoints.config_folder(found.variant)
            facts = _facts(folder, found.evidence)
            return facts._replace(
                prediction=found.likely, prediction_known=found.prediction is not None,
                zero_snr=found.zero_snr, resolution=found.resolution,
            )  # fmt: skip
        if not (path / "model_index.json").is_file():
            return None
        if _json(path / "model_index.json").get("_class_name") != PIPELINE:
            return None
        for part, file in WEIGHTS.items():
            _whole(path / part / file)
        _whole_tokenizer(path / "tokenizer")
        return _facts(path, f"{PIPELINE}, scheduler_config.json")

    @classmethod
    def load(cls, base: str, facts: Facts, dtype: torch.dtype) -> Self:
        if Path(base).is_file():
            opened = checkpoints.open_checkpoint(Path(base))
            parts = checkpoints.load_checkpoint(opened, dtype)
            if not facts.prediction_known:
                prediction = checkpoints.probe_prediction(parts.unet)
                facts = facts._replace(
                    prediction=prediction, prediction_known=True, evidence=f"{facts.evidence}; a forward pass"
                )
            parts.vae.float()
            return cls(base, facts, parts.unet, parts.vae, parts.text_encoder, parts.tokenizer, parts.scheduler_config)
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel

        path = Path(base)
        unet = _from_pretrained(UNet2DConditionModel, path, "unet", dtype)
        vae = _from_pretrained(AutoencoderKL, path, "vae", torch.float32)
        text_encoder = _from_pretrained(CLIPTextModel, path, "text_encoder", dtype)
        return cls(base, facts, unet, vae, text_encoder, cls.tokenizer(base), _json(_scheduler_file(path)))

    @classmethod
    def skeleton(cls, base: str, facts: Facts) -> dict[str, nn.Module]:
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        path = _config_folder(base)
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(_json(path / "unet" / "config.json"))
            text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(_json(path / "text_encoder" / "config.json")))
        return {"unet": unet, "text_encoder": text_encoder}

    @classmethod
    def tokenizer(cls, base: str) -> Any:
        from transformers import CLIPTokenizer

        if Path(base).is_file():
            return checkpoints.load_tokenizer(checkpoints.open_checkpoint(Path(base)).variant)
        _whole_tokenizer(Path(base) / "tokenizer")
        try:
            return CLIPTokenizer.from_pretrained(base, subfolder="tokenizer", local_files_only=True)
        except (OSError, ValueError) as e:
            problem = f"{Path(base) / 'tokenizer'} cannot be loaded: {str(e).splitlines()[0]}"
            raise BaseError(problem, "fetch the base again") from e

    @property
    def components(self) -> Mapping[str, nn.Module]:
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def fingerprint(self, part: str) -> str:
        module = getattr(self, part)
        facts = module.config.to_dict() if part == "text_encoder" else dict(module.config)
        told = {k: v for k, v in facts.items() if not k.startswith("_") and k not in _SAYS_NOTHING}
        if part == "text_encoder":
            told["vocabulary"] = sorted(self.tokens.get_vocab().items())
        return weights.digest(json.dumps(told, sort_keys=True, default=str) + weights.fingerprint(module.state_dict()))

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        parts = {part: copy.deepcopy(getattr(self, part)).to("cpu", dtype) for part in WEIGHTS}
        whole = type(self)(self.base, self.facts, parts["unet"], parts["vae"], parts["text_encoder"], self.tokens,
                           self.scheduler_config)  # fmt: skip
        whole.pipeline().save_pretrained(folder, safe_serialization=True)

    def checkpoint_gradients(self) -> None:
        cast(Any, self.unet).enable_gradient_checkpointing()
        text: Any = self.text_encoder  # transformers 5 gave the verb a new name
        enable = getattr(text, "activation_checkpointing_enable", None) or text.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def to(self, device: torch.device, *parts: str) -> None:
        for part in parts or WEIGHTS:
            getattr(self, part).to(device)
        if "unet" in (parts or WEIGHTS):
            self.process = self.process.to(device)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Moments:
        with torch.autocast(pixels.device.type, enabled=False):
            found = cast(Any, self.vae).encode(pixels.float()).latent_dist
        return Moments(found.mean.float(), found.logvar.float())

    def latents(self, moments: Moments, noise: Tensor) -> Tensor:
        drawn = moments.mean + (0.5 * moments.logvar).exp() * noise
        config = cast(Any, self.vae).config
        scaled: Tensor = (drawn - (config.shift_factor or 0.0)) * config.scaling_factor
        return scaled

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        config = cast(Any, self.vae).config
        scaled = latents.float() / config.scaling_factor + (config.shift_factor or 0.0)
        with torch.autocast(latents.device.type, enabled=False):
            pixels: Tensor = cast(Any, self.vae).decode(scaled).sample
        return pixels

    def encode_text(self, captions: Sequence[str]) -> Text:
        ids = self.tokens(
            list(captions), padding="max_length", truncation=True, max_length=self.facts.max_tokens, return_tensors="pt"
        ).input_ids
        device = next(self.text_encoder.parameters()).device
        return Text(self.text_encoder(ids.to(device))[0])

    def predict(self, noisy: Tensor, t: Tensor, text: Text) -> Tensor:
        weight = next(self.unet.parameters()).dtype
        # compiled for training only: without gradients, or in evaluation, torch would compile it anew, for minutes
        denoise = self._compiled if self._compiled is not None and torch.is_grad_enabled() else cast(Any, self.unet)
        output: Tensor = denoise(noisy.to(weight), t, text.tokens.to(noisy.device, weight), return_dict=False)[0]
        return output

    def compile(self) -> None:
        self._compiled = torch.compile(self.unet)

    def pipeline(self, scheduler: str = "", safety: bool = False) -> Any:
        import diffusers

        name = SCHEDULERS[scheduler] if scheduler else self.scheduler_config["_class_name"]
        checker, extractor = self._safety() if safety else (None, None)
        pipeline = diffusers.StableDiffusionPipeline(
            vae=self.vae, text_encoder=self.text_encoder, tokenizer=self.tokens, unet=self.unet,
            scheduler=getattr(diffusers, name).from_config(self._sampling_config()),
            safety_checker=checker, feature_extractor=extractor, requires_safety_checker=checker is not None,
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def has_safety_checker(self) -> bool:
        return (Path(self.base) / "safety_checker" / "config.json").is_file()

    def _safety(self) -> tuple[Any, Any]:
        if not self.has_safety_checker():
            return None, None
        from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessor

        checker = StableDiffusionSafetyChecker.from_pretrained(self.base, subfolder="safety_checker")
        return checker, CLIPImageProcessor.from_pretrained(self.base, subfolder="feature_extractor")

    def _sampling_config(self) -> dict[str, Any]:
        named = {"epsilon": "epsilon", "v": "v_prediction"}[self.facts.prediction]
        own = {k: v for k, v in self.scheduler_config.items() if not k.startswith("_")}
        own.setdefault("skip_prk_steps", True)  # as the published pndm configs have it: few steps need it
        return own | {"prediction_type": named, "rescale_betas_zero_snr": self.facts.zero_snr}


def _facts(path: Path, evidence: str) -> Facts:
    unet, vae = _json(path / "unet" / "config.json"), _json(path / "vae" / "config.json")
    text, scheduler = _json(path / "text_encoder" / "config.json"), _json(_scheduler_file(path))
    if unet.get("in_channels") != vae.get("latent_channels"):
        raise BaseError(
            f"{path} is an inpainting or depth base: its UNet takes {unet.get('in_channels')} channels",
            "train on the text-to-image base of the same line; the adapter works on both",
        )
    named = scheduler.get("prediction_type", "epsilon")
    predictions: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v"}
    if named not in predictions:
        raise BaseError(f"{path}: prediction type {named!r} is not one of epsilon, v_prediction", _ITS_SCHEDULER)
    shrink = 2 ** (len(vae["block_out_channels"]) - 1)
    return Facts(
        family="sd",
        variant="sd2" if unet.get("use_linear_projection") else "sd1",
        prediction=predictions[named],
        prediction_known=True,
        zero_snr=bool(scheduler.get("rescale_betas_zero_snr", False)),
        resolution=int(unet["sample_size"]) * shrink,
        stride=shrink * 2 ** (len(unet["block_out_channels"]) - 1),
        max_tokens=int(text.get("max_position_embeddings", 77)),
        evidence=evidence,
    )


def _process(config: Mapping[str, Any], facts: Facts) -> Process:
    table = config.get("trained_betas")
    if table is None:
        schedule = config.get("beta_schedule", "linear")
        if schedule not in ("linear", "scaled_linear"):
            problem = f"scheduler_config.json: beta_schedule {schedule!r} is not one of linear, scaled_linear"
            raise BaseError(problem, _ITS_SCHEDULER)
        n = int(config.get("num_train_timesteps", 1000))
        table = betas(schedule, config.get("beta_start", 0.0001), config.get("beta_end", 0.02), n)
    return discrete(torch.as_tensor(table), facts.prediction, facts.zero_snr)


def _config_folder(base: str) -> Path:
    path = Path(base)
    return checkpoints.config_folder(checkpoints.open_checkpoint(path).variant) if path.is_file() else path


def _scheduler_file(path: Path) -> Path:
    return path / "scheduler" / "scheduler_config.json"


def _whole(path: Path) -> None:
    pickled = [p.name for p in path.parent.glob("*.bin")]
    if not path.is_file() and pickled:
        raise BaseError(
            f"{path.parent} holds pickled weights only ({pickled[0]}), which can run code when opened: refused",
            "take the safetensors version of this model",
        )
    weights.read_header(path)


def _whole_tokenizer(folder: Path) -> None:
    """transformers makes an empty tokenizer of a folder without a vocabulary, and all captions the same."""
    if not (folder / "tokenizer.json").is_file() and not all((folder / f).is_file() for f in _VOCABULARY):
        raise BaseError(f"the base lacks its vocabulary: no {' and '.join(_VOCABULARY)} in {folder}", "fetch it again")


def _from_pretrained(kind: Any, path: Path, part: Part, dtype: torch.dtype) -> nn.Module:
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        module, info = kind.from_pretrained(
            str(path), subfolder=part, torch_dtype=dtype, use_safetensors=True, local_files_only=True,
            output_loading_info=True,
        )  # fmt: skip
    except (RuntimeError, ValueError, OSError) as e:
        raise BaseError(f"{path / part} cannot be loaded: {str(e).splitlines()[0]}", "fetch the base again") from e
    missing = [k for k in info["missing_keys"] if not k.endswith("position_ids")]
    if missing or info["mismatched_keys"]:
        bad = [*missing, *info["mismatched_keys"]]
        raise BaseError(
            f"{path / part}: {len(bad)} weights are missing or misshapen, {bad[0]} first", "fetch the base again"
        )
    found: nn.Module = module
    for tensor in (*found.parameters(), *found.buffers()):
        # a copy, because what safetensors gives is mapped from the file, which may be overwritten
        tensor.data = tensor.data.clone()
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise BaseError(f"the base lacks {path.parent.name}/{path.name}", f"is {path.parent.parent} whole?") from e
    except ValueError as e:
        raise BaseError(f"{path} is not JSON: {e}", "fetch the base again") from e
    return found
