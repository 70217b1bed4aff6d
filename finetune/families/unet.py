"""What the UNet families share: the beta table, the samplers, the modules that adapters change.

Sources: arXiv:2112.10752; the block structure is diffusers' UNet2DConditionModel.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from finetune import reading
from finetune.diffusion.process import Prediction, Process, betas, discrete
from finetune.errors import BaseError
from finetune.families import parts, single_file
from finetune.families.base import BaseInfo, Conditioning, FewSteps
from finetune.families.distilled import by_config, by_name
from finetune.families.folder import DiffusersFolder, Source
from finetune.families.identify import SAME_LINE, Variant, identify, wide_title
from finetune.families.readers import OF_UNETS, Reader
from finetune.families.stored import read_header

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lcm": "LCMScheduler",
    "pndm": "PNDMScheduler",
    "tcd": "TCDScheduler",
    "unipc": "UniPCMultistepScheduler",
}
FEW_STEPS = {
    # arXiv:2311.05556, arXiv:2402.19159: both were distilled from 50 steps of DDIM
    "lcm": FewSteps(8, 1.0, 50),
    "tcd": FewSteps(8, 1.0, 50, {"eta": 0.3}),
}
TABLES = {
    *SCHEDULERS.values(), "DEISMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler",
}  # fmt: skip
"""diffusers' schedulers of a beta table; EDM's and those of flows are of another noise path"""
PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v"}
_MORE_INPUTS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "encoder_hid_dim")
"""of a UNet's configuration: upscalers, unCLIP, Kandinsky and UNets with an IP-Adapter inside have them"""
_MOST_TIMESTEPS = 100_000
ITS_SCHEDULER = "this family has neither: is scheduler_config.json the base's own?"

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
_RESNETS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.*.conv", "upsamplers.*.conv")
PRESETS: Mapping[str, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "attention+ff": (*_ATTENTION, *_FEED_FORWARD),
    # not conv_in, conv_out, time_embedding: kohya's reader drops those without a word
    "all": (*_ATTENTION, *_FEED_FORWARD, *_RESNETS),
}
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_TEXT_ALL = (*_TEXT_ATTENTION, "fc1", "fc2")
TEXT_PRESETS: Mapping[str, tuple[str, ...]] = {
    "attention": _TEXT_ATTENTION, "attention+ff": _TEXT_ALL, "all": _TEXT_ALL,
}  # fmt: skip


BLOCKS = ("down_blocks.*", "mid_block", "up_blocks.*")
"""of UNet2DConditionModel"""


class UNetFolder(DiffusersFolder):
    """What the UNets share: bases are folders or single files, and adapters have kohya's names."""

    denoiser_name: ClassVar[str] = "unet"
    blocks: ClassVar[tuple[str, ...]] = BLOCKS
    layout: ClassVar[Literal["kohya", "diffusers"]] = "kohya"
    readers: ClassVar[tuple[Reader, ...]] = OF_UNETS
    schedulers: ClassVar[Mapping[str, str]] = SCHEDULERS
    few_steps: ClassVar[Mapping[str, FewSteps]] = FEW_STEPS
    VARIANTS: ClassVar[tuple[Variant, ...]]
    """of single files"""

    @classmethod
    def source(cls, base: str) -> Source:
        path = Path(base)
        return single_file.SingleFile(path) if reading.is_file(path) else super().source(base)

    @classmethod
    def detect(cls, base: str) -> BaseInfo | None:
        path = Path(base)
        if not reading.is_file(path):
            return super().detect(base)
        if identify(read_header(path)).variant not in cls.VARIANTS:
            return None
        found = single_file.open_checkpoint(path)
        return cls.facts_of(single_file.config_folder(found.variant))._replace(
            prediction=found.likely, prediction_known=found.prediction is not None, distilled=by_name([found.title]),
            zero_snr=found.zero_snr, resolution=found.resolution, evidence=found.evidence, unused=found.unused,
        )  # fmt: skip

    @classmethod
    def load(cls, base: str, facts: BaseInfo, dtype: torch.dtype, text_bits: int | None = None) -> Self:
        """As `Family.load`; a base that does not say what it predicts is asked, and facts tell what came of it.

        Raises:
            BaseError: it predicts epsilon, and ends in pure noise.
        """
        family = super().load(base, facts, dtype, text_bits)
        if facts.prediction_known:
            return family
        asked = single_file.probe(family.parts["unet"])
        return cls(base, _asked(facts, asked, base), family.parts, family.tokenizers)

    @classmethod
    def process_of(cls, scheduler: Mapping[str, Any], facts: BaseInfo) -> Process:
        return process(scheduler, facts)

    def scheduler(self, named: str) -> Any:
        return scheduler(self.scheduler_config, self.facts, named)

    def predict(self, noisy: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        denoiser = self.parts.called(self.denoiser_name)
        weight, text = parts.float_dtype(denoiser), given.text.tokens
        told = self.added(noisy, given)
        output: Tensor = denoiser(noisy.to(weight), t, text.to(noisy.device, weight), return_dict=False, **told)[0]
        return output

    def added(self, noisy: Tensor, given: Conditioning) -> dict[str, Any]:
        """What the UNet reads beside latents, times and tokens."""
        return {}


def _asked(facts: BaseInfo, asked: Prediction | None, base: str) -> BaseInfo:
    """The facts, with what a forward pass told."""
    if asked is not None:
        refuse_blind(asked, facts.zero_snr, base)
        return facts.settled(asked, "a forward pass")
    if reading.is_file(Path(base)):
        return facts._replace(evidence=f"{facts.evidence}; a forward pass cannot tell")
    return facts.settled("epsilon", "diffusers' default, as a forward pass cannot tell")


def refuse_blind(prediction: str, zero_snr: bool, base: object) -> None:
    """Raises BaseError: epsilon at the end of a path in pure noise is the input, and says nothing of the picture."""
    if prediction == "epsilon" and zero_snr:
        raise BaseError(
            f"{base} ends in pure noise (zero terminal SNR) and predicts epsilon, which cannot be together",
            "is its configuration its own? A base whose path ends in pure noise predicts v",
        )


def facts(path: Path, family: str, variant: str, pipeline: str, **own: Any) -> BaseInfo:
    """Of a folder with a UNet, and what is the family's own."""
    denoiser, vae, text = (parts.config(path / part / "config.json") for part in ("unet", "vae", "text_encoder"))
    scheduler = parts.config(path / "scheduler" / "scheduler_config.json")
    refuse_other_inputs(denoiser, vae, path)
    predicts, zero_snr = prediction(scheduler, path), bool(scheduler.get("rescale_betas_zero_snr", False))
    said = scheduler.get("prediction_type") is not None
    if said:
        refuse_blind(predicts, zero_snr, path)
    shrink = 2 ** (len(vae["block_out_channels"]) - 1)
    tokens, levels = int(text.get("max_position_embeddings", 77)), scheduler.get("trained_betas")
    return BaseInfo(
        family=family,
        variant=variant,
        prediction=predicts if said or not zero_snr else "v",
        prediction_known=said,
        evidence=f"{pipeline}, scheduler_config.json{'' if said else ', which names no prediction_type'}",
        distilled=by_config(denoiser, scheduler),
        zero_snr=zero_snr,
        resolution=int(denoiser["sample_size"]) * shrink,
        stride=shrink * 2 ** (len(denoiser["block_out_channels"]) - 1),
        max_tokens=tokens,
        channels=int(vae["latent_channels"]),
        vae_scale_factor=shrink,
        noise_levels=len(levels) if isinstance(levels, list) else int(scheduler.get("num_train_timesteps", 1000)),
        **{"text": (tokens, int(denoiser["cross_attention_dim"]), 0)} | own,
    )


def prediction(scheduler: Mapping[str, Any], where: object) -> Prediction:
    """Raises BaseError when the scheduler, or the prediction it names, is one that no base of these families has."""
    if scheduler.get("_class_name") not in TABLES:
        problem = f"{where}/scheduler: {scheduler.get('_class_name')} is no scheduler of a beta table"
        raise BaseError(problem, "is it the base's own? CosXL and other EDM bases are not trained here")
    named = scheduler.get("prediction_type") or "epsilon"
    if named not in PREDICTIONS:
        raise BaseError(f"{where}: prediction type {named!r} is not one of epsilon, v_prediction", ITS_SCHEDULER)
    return PREDICTIONS[named]


def refuse_other_inputs(unet: Mapping[str, Any], vae: Mapping[str, Any], where: object) -> None:
    """Raises BaseError when the UNet takes more than latents, times, tokens and sizes."""
    channels = unet["in_channels"]
    if channels != vae.get("latent_channels"):
        raise BaseError(f"{where} is {wide_title(channels)}: its UNet takes {channels} channels", SAME_LINE)
    for key in _MORE_INPUTS:
        if (value := unet.get(key)) is not None:
            raise BaseError(f"{where}: its UNet is told more than captions and sizes ({key} = {value})", SAME_LINE)


def process(config: Mapping[str, Any], facts: BaseInfo) -> Process:
    table = config.get("trained_betas")
    if table is None:
        schedule = config.get("beta_schedule", "linear")
        if schedule not in ("linear", "scaled_linear"):
            problem = f"scheduler_config.json: beta_schedule {schedule!r} is not one of linear, scaled_linear"
            raise BaseError(problem, ITS_SCHEDULER)
        n = int(config.get("num_train_timesteps", 1000))
        if not 1 < n <= _MOST_TIMESTEPS:
            raise BaseError(f"scheduler_config.json: num_train_timesteps is {n}, and usually 1000", ITS_SCHEDULER)
        start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
        if not 0 < start <= end < 1:
            raise BaseError(f"scheduler_config.json: beta_start {start} and beta_end {end} are no betas", ITS_SCHEDULER)
        table = betas(schedule, start, end, n)
    listed = isinstance(table, list) and all(isinstance(beta, float) for beta in table)
    noise = torch.as_tensor(table if listed or isinstance(table, Tensor) else [])
    if noise.ndim != 1 or len(noise) < 2 or not bool(((noise > 0) & (noise < 1)).all()):
        raise BaseError("scheduler_config.json: its noise levels (beta) are not all between 0 and 1", ITS_SCHEDULER)
    return discrete(noise, facts.prediction, facts.zero_snr)


def scheduler(own: Mapping[str, Any], facts: BaseInfo, named: str) -> Any:
    """A diffusers scheduler on the base's table; "" for the base's own. Raises KeyError: there is none of that name."""
    import diffusers

    config = {k: v for k, v in own.items() if not k.startswith("_")}
    config.setdefault("skip_prk_steps", True)  # as the published pndm configs have it: few steps need it
    said = {"epsilon": "epsilon", "v": "v_prediction"}[facts.prediction]
    config |= {"prediction_type": said, "rescale_betas_zero_snr": facts.zero_snr}
    return getattr(diffusers, SCHEDULERS[named] if named else own["_class_name"]).from_config(config)
