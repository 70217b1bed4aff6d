"""The layouts that adapters are read and written in, each from the file that knows it."""

from finetune.files.diffusers import diffusers, uniform
from finetune.files.kohya import universal
from finetune.files.names import components
from finetune.files.peft import PEFT_CONFIG, PEFT_WEIGHTS, write_peft
from finetune.files.read import DIFFUSERS_CONFIG, MODULE_LIST, AdapterFile, adapter_in, expected, module_list, read

__all__ = [
    "DIFFUSERS_CONFIG", "MODULE_LIST", "PEFT_CONFIG", "PEFT_WEIGHTS", "AdapterFile", "adapter_in", "components",
    "diffusers", "expected", "module_list", "read", "uniform", "universal", "write_peft",
]  # fmt: skip
