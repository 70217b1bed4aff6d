"""What changes a frozen base: low-rank layers in memory, and how PEFT puts them into a model."""

from finetune.later import put_off_optional

put_off_optional()  # before anything imports peft
