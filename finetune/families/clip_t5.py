"""CLIP and T5 as text encoders of transformers: read with padding to a fixed length.

T5-XXL is large: it is loaded to fill the cache, and let go before training.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from finetune.families.base import Text


def ids(tokenizer: Any, captions: Sequence[str], length: int) -> torch.Tensor:
    """(b, length), filled up, cut off."""
    found: torch.Tensor = tokenizer(
        list(captions), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids
    return found


def clip(module: nn.Module, tokenizer: Any, captions: Sequence[str]) -> Text:
    """The last states but one, before the final norm, and the pooled state after its projection."""
    encoder: Any = module
    made = encoder(_on(encoder, ids(tokenizer, captions, 77)), output_hidden_states=True)
    return Text(made.hidden_states[-2], made.text_embeds)


def clip_pooled(module: nn.Module, tokenizer: Any, captions: Sequence[str]) -> Text:
    """The pooled state alone: no tokens."""
    encoder: Any = module
    pooled = encoder(_on(encoder, ids(tokenizer, captions, 77))).pooler_output
    return Text(pooled.new_zeros(len(pooled), 0, pooled.shape[1]), pooled)


def t5(module: nn.Module, tokenizer: Any, captions: Sequence[str], length: int) -> Text:
    """The last states, padding and all, as the denoisers that read T5 were trained."""
    encoder: Any = module
    return Text(encoder(_on(encoder, ids(tokenizer, captions, length)))[0])


def _on(encoder: Any, found: torch.Tensor) -> torch.Tensor:
    return found.to(next(encoder.parameters()).device)
