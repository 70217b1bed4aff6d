"""Language models as text encoders: captions in the form the denoiser was trained with, of any length.

They are large: loaded to fill the cache, and let go before training.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from finetune.families.base import Text


def states(module: nn.Module, tokenizer: Any, forms: Sequence[str], length: int, layer: int, skipped: int = 0) -> Text:
    """The hidden states of one layer, less the first tokens of each, filled up with zeros and masked.

    forms: captions in the model's own form; length: of tokens, after which a form is cut off.
    """
    encoder: Any = module
    read = tokenizer(list(forms), padding=True, truncation=True, max_length=length, return_tensors="pt")
    device = next(encoder.parameters()).device
    made = encoder(
        input_ids=read.input_ids.to(device), attention_mask=read.attention_mask.to(device), output_hidden_states=True
    ).hidden_states[layer]
    mask = read.attention_mask.bool().to(device)
    kept = [row[own][skipped:] for row, own in zip(made, mask, strict=True)]
    return Text.stacked([Text(one, mask=torch.ones(len(one), dtype=torch.bool, device=device)) for one in kept])
