"""What training makes small: the squared error of the denoiser's prediction, and of the prior's, as one module.

All that is trained hangs from one module with one forward, as Accelerate prepares it, and as FSDP2 needs it: the
outermost call decides when weights that are spread over the GPUs are there.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from finetune.adapters import attach as adapters
from finetune.diffusion.loss import error_outside, masked_error, squared_error
from finetune.families.base import Conditioning, Family, Text, read
from finetune.families.blocks import block_names
from finetune.recipe import Recipe
from finetune.training.batches import Batch


class RootModule(nn.Module):
    """Batch -> losses: the parts that are used in training are its children."""

    def __init__(self, family: Family, config: Recipe, names: Iterable[str]) -> None:
        """names: of these parts, the denoiser among them."""
        super().__init__()
        self.family, self.config = family, config
        for name in names:
            self.add_module(name, family.parts[name])

    def forward(self, batch: Batch | None) -> tuple[Tensor, Tensor | None] | None:
        """As `objective`; of no batch, nothing."""
        return None if batch is None else objective(self.family, batch, self.config)

    def units(self) -> set[str]:
        """Classes of modules whose weights are spread together: the denoiser's blocks, a text encoder's layers, and
        each part, with what is left of it."""
        found = {type(part).__name__ for part in self.children()}
        for name, part in self.named_children():
            if name == self.family.denoiser_name:
                found |= {type(part.get_submodule(n)).__name__ for n in block_names(part, self.family.blocks)}
            else:
                found |= {type(m).__name__ for m in part.modules()} & set(
                    getattr(part, "_no_split_modules", None) or ()
                )
        return found


def objective(family: Family, batch: Batch, config: Recipe) -> tuple[Tensor, Tensor | None]:
    """Per-sample losses (b,), float32, of what their masks show, weighted by min-SNR; and those of the prior by own
    prediction, of whole samples and unweighted."""
    noisy = family.process.add_noise(batch.latents, batch.noise, batch.t)
    target = family.process.target(batch.latents, batch.noise, batch.t)
    if batch.preserve:
        output, kept = _beside_the_base(family, batch, noisy)
    else:
        output, kept = family.predict(noisy, batch.t, batch.given(read(family, batch.prompts, batch.text))), None
    losses = _masked(family, batch, config, noisy, output, target)
    if config.objective.min_snr is not None:
        losses = losses * family.process.min_snr(batch.t, config.objective.min_snr)
    return losses, kept


def _masked(
    family: Family, batch: Batch, config: Recipe, noisy: Tensor, output: Tensor, target: Tensor
) -> Tensor:  # fmt: skip
    """(b,): what is inside of a mask is learnt; what is outside counts less, or stays the base's own prediction."""
    if batch.mask is None:
        return squared_error(output, target)
    outside = config.data.mask_outside
    if outside != "own_prediction":
        return masked_error(output, target, batch.mask, outside)
    with torch.no_grad(), adapters.disabled(family.parts.loaded()):
        own = family.predict(noisy, batch.t, batch.given(read(family, batch.prompts, batch.text)))
    return masked_error(output, target, batch.mask) + error_outside(output, own, batch.mask)


def _beside_the_base(family: Family, batch: Batch, noisy: Tensor) -> tuple[Tensor, Tensor]:
    """The prediction for the captions, and how far that for those without the trigger is from the base's: (b,). Both
    are predicted in one pass, which keeps no more for the backward pass than two would."""

    def preserved() -> Text:
        return read(family, batch.preserve_prompts, batch.preserve_text)

    with torch.no_grad(), adapters.disabled(family.parts.loaded()):
        own = family.predict(noisy, batch.t, batch.given(preserved()))
    text = read(family, batch.prompts, batch.text).beside(preserved())
    given = Conditioning(text, _twice(batch.size), tuple(map(_twice, batch.control)))
    output, again = family.predict(_twice(noisy), _twice(batch.t), given).chunk(2)
    return output, squared_error(again, own)


def _twice(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows])
