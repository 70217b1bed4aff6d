"""Tiny captioning models with random weights, made from the configs of real ones, saved as a hub's folder is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GPT2Config,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

BASIC = ("<pad>", "<eos>", "<bos>")
PAD, EOS, BOS = 256, 257, 258
QWEN = (*BASIC, "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
CHAT = (
    "{% for m in messages %}{{ m.role }}:{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TASKS = (
    "ocr", "phrase_grounding", "pure_text", "description_with_bboxes", "description_with_polygons", "polygons",
    "bboxes", "description_with_bboxes_or_polygons",
)  # fmt: skip


def byte_tokenizer(special: Sequence[str], **more: Any) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelt = Tokenizer(models.BPE({token: n for n, token in enumerate([*letters, *special])}, []))
    spelt.pre_tokenizer, spelt.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    named = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    return PreTrainedTokenizerFast(tokenizer_object=spelt, additional_special_tokens=list(special), **named, **more)


def blip(folder: Path) -> Path:
    torch.manual_seed(0)
    text = SMALL | {"vocab_size": 259, "encoder_hidden_size": 16, "projection_dim": 16, "max_position_embeddings": 128,
                    "bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": EOS, "sep_token_id": EOS}  # fmt: skip
    vision = SMALL | {"image_size": 32, "patch_size": 16}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=16, image_text_hidden_size=16)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), byte_tokenizer(BASIC)).save_pretrained(
        folder
    )
    return folder


def qwen2_vl(folder: Path) -> Path:
    torch.manual_seed(0)
    words = byte_tokenizer(QWEN)
    image, film, start, end = words.convert_tokens_to_ids(list(QWEN[3:]))
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = SMALL | {"vocab_size": len(words), "num_key_value_heads": 1, "rope_parameters": rope,
                    "bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": EOS}  # fmt: skip
    config = Qwen2VLConfig(
        text_config=text, vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2},
        image_token_id=image, video_token_id=film, vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    words.save_pretrained(folder)
    Qwen2VLImageProcessorPil(size={"shortest_edge": 56**2, "longest_edge": 84**2}).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


def florence2(folder: Path) -> Path:
    torch.manual_seed(0)
    words = byte_tokenizer((*BASIC, "<image>"), extra_special_tokens={"image_token": "<image>"})
    text = {
        "model_type": "bart", "vocab_size": len(words), "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
        "max_position_embeddings": 256, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
        "decoder_start_token_id": EOS, "forced_eos_token_id": EOS,
    }  # fmt: skip
    vision = {"depths": [1, 1, 1, 1], "embed_dim": [8, 8, 8, 16], "num_heads": [1, 1, 1, 2], "num_groups": [1, 1, 1, 2],
              "projection_dim": 16, "window_size": 2}  # fmt: skip
    image = words.convert_tokens_to_ids("<image>")
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=image)
    Florence2ForConditionalGeneration(config).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    pictures.image_seq_length = 5
    rules: dict[str, Any] = {name: {} for name in TASKS}
    rules |= {"ocr": {"pattern": "x", "area_threshold": 0}, "phrase_grounding": {"banned_grounding_tokens": []}}
    Florence2Processor(pictures, words, post_processor_config=rules).save_pretrained(folder)
    return folder


def vit_gpt2(folder: Path) -> Path:
    """A model of two parts, which has no processor of its own."""
    torch.manual_seed(0)
    seen = ViTConfig(**SMALL, image_size=32, patch_size=16)
    said = GPT2Config(vocab_size=259, n_embd=16, n_layer=1, n_head=2, n_positions=128, bos_token_id=BOS,
                      eos_token_id=EOS, pad_token_id=PAD)  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(seen, said)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = BOS, PAD, EOS
    VisionEncoderDecoderModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    byte_tokenizer(BASIC).save_pretrained(folder)
    return folder
