"""What training makes small: the squared error of the denoiser's prediction, and of the prior's, as one module.

All that is trained hangs from one module with one forward, as Accelerate prepares it, and as FSDP2 needs it: the
outermost call decides when weights that are spread over the GPUs are there.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from finetune.adapters import attach as adapters
from finetune.diffusion.loss import squared_error
from finetune.families.base import Family, read
from finetune.families.blocks import block_names
from finetune.recipe import Recipe
from finetune.training.batches import Batch


class Objective(nn.Module):
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
    """Per-sample losses (b,), float32, weighted by min-SNR; and those of the prior by own prediction, unweighted."""
    noisy = family.process.add_noise(batch.latents, batch.noise, batch.t)
    output = family.predict(noisy, batch.t, batch.given(read(family, batch.prompts, batch.text)))
    losses = squared_error(output, family.process.target(batch.latents, batch.noise, batch.t))
    if config.objective.min_snr is not None:
        losses = losses * family.process.min_snr(batch.t, config.objective.min_snr)
    if not batch.preserve:
        return losses, None

    def preserved() -> Tensor:
        given = batch.given(read(family, batch.preserve_prompts, batch.preserve_text))
        return family.predict(noisy, batch.t, given)

    with torch.no_grad(), adapters.disabled(family.parts.loaded()):
        own = preserved()
    return losses, squared_error(preserved(), own)
