"""What changes a frozen base: low-rank layers in memory, and how PEFT puts them into a model."""
