"""Words a user chooses from, each list declared once: for recipes, calls and the command line."""

from typing import Literal

Kind = Literal["product", "style"]
"""What a dataset shows."""
CaptionLines = Literal["each", "joined"]
"""What the lines of a picture's caption file are: a caption each, shown by turns, or one caption."""
CaptionsFrom = Literal["auto", "filename", "description", "none"]
"""Where captions come from that stand in no caption file. auto: from file names that are words, else from varied
templates; description: from what the picture's own file says (EXIF, IPTC, XMP, PNG text)."""
FolderNames = Literal["auto", "repeats", "plain"]
"""What a folder's name such as `10_sks mug` says. repeats: kohya's number of repeats, and a caption; plain: nothing;
auto: repeats, unless the number looks like part of a name (2024_holiday, 01_front)."""
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
