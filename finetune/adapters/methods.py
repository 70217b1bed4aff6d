"""The methods that a recipe may name in adapter.method, beside "full": one module of this folder each."""

from finetune.adapters import dora, lora
from finetune.adapters.change import Method

METHODS: dict[str, Method] = {"dora": dora, "lora": lora}
"""name -> module; a layer or file is of the first whose mark it carries"""
