"""Fine-tune text-to-image diffusion models with LoRA and DreamBooth, and prove that it worked."""

__version__ = "0.1.0"
