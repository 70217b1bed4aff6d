"""Tiny segmentation models with random weights, made from the configs of real ones, saved as a hub's folder is."""

from pathlib import Path

import torch
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor, SamConfig, SamModel, SamProcessor
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from support.captioners import BASIC, EOS, PAD, SMALL, byte_tokenizer


def clipseg(folder: Path) -> Path:
    torch.manual_seed(0)
    text = SMALL | {"vocab_size": 259, "max_position_embeddings": 64, "eos_token_id": EOS, "pad_token_id": PAD,
                    "bos_token_id": 258}  # fmt: skip
    vision = SMALL | {"num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
    config = CLIPSegConfig(
        text_config=text, vision_config=vision, projection_dim=16, reduce_dim=8, extract_layers=[0, 1, 2],
        decoder_num_attention_heads=2, decoder_intermediate_size=16, conditional_layer=0,
    )  # fmt: skip
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    CLIPSegProcessor(ViTImageProcessorPil(size={"height": 32, "width": 32}), byte_tokenizer(BASIC)).save_pretrained(
        folder
    )
    return folder


def sam(folder: Path) -> Path:
    torch.manual_seed(0)
    seen = {"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 16, "mlp_dim": 16, "global_attn_indexes": [0], "window_size": 2,
            "num_pos_feats": 8}  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
               "iou_head_hidden_dim": 16}  # fmt: skip
    SamModel(SamConfig(vision_config=seen, prompt_encoder_config=prompt, mask_decoder_config=decoder)).save_pretrained(
        folder
    )
    pictures = SamImageProcessorPil(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )  # fmt: skip
    SamProcessor(pictures).save_pretrained(folder)
    return folder
