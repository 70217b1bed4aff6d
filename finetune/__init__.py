"""Fine-tune text-to-image diffusion models with LoRA and DreamBooth, and prove that it worked."""

import logging

__version__ = "0.1.0"

if logging.getLogger("bitsandbytes").level == logging.NOTSET:
    # when imported it tells of kernels that nobody asked for; who wants to hear it sets a level
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
