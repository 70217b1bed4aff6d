"""The methods that a recipe may name in adapter.method, beside "full": one module of this folder each."""

from finetune.adapters import lora
from finetune.adapters.change import Method

METHODS: dict[str, Method] = {"lora": lora}
