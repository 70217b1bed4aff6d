"""Words a user chooses from, each list declared once: for recipes, calls and the command line."""

from typing import Literal

Kind = Literal["product", "style"]
"""What a dataset shows."""
CaptionsFrom = Literal["auto", "filename", "none"]
"""Where captions that nobody wrote come from. auto: from file names that are words, else from varied templates."""
MaskFrom = Literal["files", "alpha"]
"""Where masks come from: mask files beside the images alone, or the transparency of images too."""
Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Compute precision. auto: bf16 or fp16 on a GPU, fp32 on a CPU."""
Dtype = Literal["float32", "float16", "bfloat16"]
"""Number format of a file's weights."""
TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
"""Programs that show a run's curves and pictures."""
ReaderName = Literal["diffusers", "comfyui", "a1111", "forge", "kohya", "lycoris"]
"""Programs that read adapter files."""
Layout = Literal["universal", "diffusers", "peft", "merged"]
"""How an adapter is laid out: one file for every program, diffusers' own, a PEFT folder, or merged into the base."""
