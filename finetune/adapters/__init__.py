"""What changes a frozen base: low-rank layers in memory, and how PEFT puts them into a model."""

from finetune.later import put_off

put_off("bitsandbytes")  # peft imports it wherever it is installed: a second, and most runs have no use for it
