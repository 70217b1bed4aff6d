"""What a UNet predicts, asked by one forward pass.

At the last timestep there is next to nothing but noise: epsilon is the input itself, and v, nearly -x0, is nothing that
the input says. That alone would take any output that is unlike the input, as of an untrained model, for v. So the same
pass asks at a middle timestep, too, whether it denoises at all: there both epsilon and v hold much of the noise.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from finetune.diffusion.process import Prediction, betas
from finetune.errors import BaseError

CELLS = 32
"""of the latents' side"""
LAST, MIDDLE = 999, 250
_ALIKE, _UNLIKE, _DENOISES = 0.8, 0.5, 0.3
"""correlations; measured: docs/log.md"""
_SAY_IT = 'set objective.prediction to "epsilon" or "v": the page the base came from says which'


@torch.no_grad()
def probe_prediction(unet: nn.Module, context: Tensor | None = None) -> Prediction:
    """context (1, n, d): the empty caption's states; zeros when not given.

    Raises:
        BaseError: its outputs are neither those of a model that predicts epsilon, nor of one that predicts v.
    """
    config: Any = cast(Any, unet).config
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, config.in_channels, CELLS, CELLS, generator=generator)
    smooth = interpolate(torch.randn(1, config.in_channels, 2, 2, generator=generator), CELLS, mode="bicubic")
    alpha = (1 - betas("scaled_linear", 0.00085, 0.012, LAST + 1)).cumprod(0)[MIDDLE].sqrt().float()
    noisy = torch.cat([noise[:1], alpha * smooth / smooth.std() + (1 - alpha**2).sqrt() * noise[1:]])
    output = _output(unet, config, noisy, torch.tensor([LAST, MIDDLE]), context)
    likeness, denoised = (_correlation(*pair) for pair in zip(noise, output, strict=True))
    if likeness > _ALIKE:
        return "epsilon"
    if abs(likeness) < _UNLIKE and denoised > _DENOISES:
        return "v"
    raise BaseError(
        f"what the base predicts cannot be told: at pure noise its output is {likeness:.2f} like the noise and in the "
        f"middle {denoised:.2f}, where epsilon gives about 1 twice, and v about 0 and more than {_DENOISES}",
        _SAY_IT,
    )


def _output(unet: nn.Module, config: Any, noisy: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
    first = next(unet.parameters())
    tokens = torch.zeros(1, 77, config.cross_attention_dim) if context is None else context
    told: dict[str, Any] = {}
    if getattr(config, "addition_embed_type", None) == "text_time":
        px = CELLS * 8
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = torch.tensor([[px, px, 0, 0, px, px]], dtype=torch.float32).expand(len(noisy), -1)
        told["added_cond_kwargs"] = {
            "text_embeds": torch.zeros(len(noisy), pooled).to(first), "time_ids": sizes.to(first.device)
        }  # fmt: skip
    made: Tensor = unet(
        noisy.to(first), t.to(first.device), encoder_hidden_states=tokens.to(first).expand(len(noisy), -1, -1),
        return_dict=False, **told,
    )[0]  # fmt: skip
    return made.float().cpu()


def _correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])
