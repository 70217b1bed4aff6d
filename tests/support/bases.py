"""Small bases with the true block structure: real configs, few channels, random weights."""

import contextlib
import gc
import json
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from finetune.families.base import Family

Variant = Literal[
    "sd15", "sd21", "sdxl", "sd3", "sd35", "flux", "schnell", "zimage", "turbo", "qwen", "klein", "klein-distilled"
]  # fmt: skip

KEPT = "FINETUNE_TEST_BASES"
"""names a folder in which each base is made once, for all processes of the tests: most of its cost is the making"""
_UNET = {
    # the published config's keys; what differs is named beside it
    "sd15": {"cross_attention_dim": 32, "attention_head_dim": 8, "use_linear_projection": False},  # 768
    "sd21": {"cross_attention_dim": 48, "attention_head_dim": [2, 4, 8, 8], "use_linear_projection": True},  # 1024
    "sdxl": {
        "cross_attention_dim": 80,  # 2048: the widths of both text encoders
        "attention_head_dim": [2, 4, 4],  # 5, 10, 20
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,  # 256
        "projection_class_embeddings_input_dim": 48 + 6 * 8,  # 1280 + 6 * 256
        "transformer_layers_per_block": [1, 2, 3],  # 1, 2, 10
    },
}
_TEXT = {
    "sd15": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "hidden_act": "quick_gelu"},
    "sd21": {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "hidden_act": "gelu"},
}
_PREDICTION = {"sd15": "epsilon", "sd21": "v_prediction", "sdxl": "epsilon"}


def tiny_base(path: Path, variant: Variant, seed: int = 0, **scheduler: object) -> Path:
    """Put a whole pipeline folder (a few MB) at `path`, to do anything with; text encoders have `text_model.` names."""
    if KEPT not in os.environ:
        _make(path, variant, seed, scheduler)
        return path
    name = "-".join([variant, str(seed), *(f"{key}={value}" for key, value in sorted(scheduler.items()))])
    kept = Path(os.environ[KEPT]) / name
    if not kept.is_dir():
        made = Path(tempfile.mkdtemp(dir=kept.parent))
        _make(made, variant, seed, scheduler)
        with contextlib.suppress(OSError):  # another process was faster
            made.rename(kept)
    return Path(shutil.copytree(kept, path, copy_function=shutil.copyfile, dirs_exist_ok=True))


def _make(path: Path, variant: Variant, seed: int, scheduler: dict[str, object]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if variant in ("sd15", "sd21", "sdxl"):
            pipeline = _unet_pipeline(path, variant, scheduler)
        elif variant in ("sd3", "sd35"):
            pipeline = _sd3(path, variant, scheduler)
        elif variant in ("flux", "schnell"):
            pipeline = _flux(path, variant, scheduler)
        elif variant == "qwen":
            pipeline = _qwen(path, scheduler)
        elif variant in ("klein", "klein-distilled"):
            pipeline = _klein(path, variant, scheduler)
        else:
            pipeline = _zimage(path, variant, scheduler)
    pipeline.save_pretrained(path)
    for part in ("text_encoder", "text_encoder_2"):
        if (path / part / "config.json").is_file() and "clip" in (path / part / "config.json").read_text():
            _canonical_text_names(path / part / "model.safetensors")


def _unet_pipeline(path: Path, variant: Variant, scheduler: dict[str, object]) -> Any:
    unet, vae = _unet(variant), _vae(latent_channels=4)
    table = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
        "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": _PREDICTION[variant],
    }  # fmt: skip
    made = DDIMScheduler(**(table | scheduler))
    words = clip_tokenizer(path / "words")
    if variant != "sdxl":
        text = CLIPTextModel(_text(variant))
        return StableDiffusionPipeline(vae, text, words, unet, made, None, None, requires_safety_checker=False)
    texts = [CLIPTextModel(_text("sd15")), CLIPTextModelWithProjection(_text("sd21", projection_dim=48))]
    # the second tokenizer of the real base fills captions up with token 0
    others = clip_tokenizer(path / "words_2", pad="!")
    return StableDiffusionXLPipeline(vae, *texts, words, others, unet, made, add_watermarker=False)


def _sd3(path: Path, variant: Variant, scheduler: dict[str, object]) -> Any:
    newer = {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)} if variant == "sd35" else {}
    transformer = SD3Transformer2DModel(
        sample_size=16,  # 128
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=3,  # 24
        attention_head_dim=16,  # 64
        num_attention_heads=2,  # 24
        joint_attention_dim=96,  # 4096
        caption_projection_dim=32,  # 1536
        pooled_projection_dim=32 + 48,  # 768 + 1280
        pos_embed_max_size=32,  # 192, of 3.5 medium 384
        **newer,
    )
    texts = [CLIPTextModelWithProjection(_text("sd15", projection_dim=32)),
             CLIPTextModelWithProjection(_text("sd21", projection_dim=48))]  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | scheduler)),
        _vae(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        texts[0], clip_tokenizer(path / "words"), texts[1], clip_tokenizer(path / "words_2", pad="!"),
        t5(96), t5_tokenizer(path / "words_3", 256),
    )  # fmt: skip


def _flux(path: Path, variant: Variant, scheduler: dict[str, object]) -> Any:
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,  # 19
        num_single_layers=2,  # 38
        attention_head_dim=16,  # 128
        num_attention_heads=2,  # 24
        joint_attention_dim=64,  # 4096
        pooled_projection_dim=32,  # 768
        guidance_embeds=variant == "flux",
        axes_dims_rope=(4, 6, 6),  # 16, 56, 56
    )
    dynamic = {"shift": 3.0, "use_dynamic_shifting": True} if variant == "flux" else {"shift": 1.0}
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(**(dynamic | scheduler)),
        _vae(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        CLIPTextModel(_text("sd15")), clip_tokenizer(path / "words"), t5(64), t5_tokenizer(path / "words_2", 512),
        transformer,
    )  # fmt: skip


def _zimage(path: Path, variant: Variant, scheduler: dict[str, object]) -> Any:
    transformer = ZImageTransformer2DModel(
        dim=48,  # 3840
        n_layers=2,  # 30
        n_refiner_layers=1,  # 2
        n_heads=3,  # 30
        n_kv_heads=3,  # 30
        cap_feat_dim=32,  # 2560
        axes_dims=[4, 6, 6],  # 32, 48, 48
        axes_lens=[1024, 64, 64],  # 1536, 512, 512
    )
    with torch.no_grad():  # these are empty, not random, when made
        transformer.x_pad_token.normal_(), transformer.cap_pad_token.normal_()
    text = Qwen3Model(
        Qwen3Config(
            vocab_size=260,  # 151936
            hidden_size=32,  # 2560
            intermediate_size=64,  # 9728
            num_hidden_layers=3,  # 36
            num_attention_heads=2,  # 32
            num_key_value_heads=1,  # 8
            head_dim=16,  # 128
        )
    )
    shift = {"shift": 6.0 if variant == "zimage" else 3.0}
    return ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(**(shift | scheduler)),
        _vae(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text, _byte_tokenizer(path / "words"), transformer,
    )  # fmt: skip


def _qwen(path: Path, scheduler: dict[str, object]) -> Any:
    transformer = QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,  # 60
        attention_head_dim=16,  # 128
        num_attention_heads=2,  # 24
        joint_attention_dim=32,  # 3584
        axes_dims_rope=(4, 6, 6),  # 16, 56, 56
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,  # 96
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,  # 2
    )
    text = {
        "vocab_size": 260,  # 152064
        "hidden_size": 32,  # 3584
        "intermediate_size": 64,  # 18944
        "num_hidden_layers": 2,  # 28
        "num_attention_heads": 2,  # 28
        "num_key_value_heads": 1,  # 4
        "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},  # 16, 24, 24
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    dynamic = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192,
               "shift_terminal": 0.02}  # fmt: skip
    return QwenImagePipeline(
        FlowMatchEulerDiscreteScheduler(**(dynamic | scheduler)), vae, Qwen2_5_VLForConditionalGeneration(config),
        _byte_tokenizer(path / "words"), transformer,
    )  # fmt: skip


def _klein(path: Path, variant: Variant, scheduler: dict[str, object]) -> Any:
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=128,
        num_layers=2,  # 5
        num_single_layers=2,  # 20
        attention_head_dim=16,  # 128
        num_attention_heads=2,  # 24
        joint_attention_dim=3 * 32,  # 3 * 2560
        guidance_embeds=False,
        axes_dims_rope=(4, 4, 4, 4),  # 32, 32, 32, 32
    )
    for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
        # as made its gates are all but shut: the blocks would hardly count
        torch.nn.init.normal_(getattr(transformer, name).linear.weight)
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4, 8, 8, 8),  # 128, 256, 512, 512
        norm_num_groups=2,  # 32
        layers_per_block=1,  # 2
        latent_channels=32,
        sample_size=64,  # 1024
    )
    vae.bn.running_mean.normal_(), vae.bn.running_var.uniform_(0.5, 2.0)  # these are 0 and 1, not random, when made
    text = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=260,  # 151936
            hidden_size=32,  # 2560
            intermediate_size=64,  # 9728
            num_hidden_layers=28,  # 36; the last that is read is the 27th
            num_attention_heads=2,  # 32
            num_key_value_heads=1,  # 8
            head_dim=16,  # 128
            tie_word_embeddings=True,
        )
    )
    dynamic = {"shift": 3.0, "use_dynamic_shifting": True}
    return diffusers.Flux2KleinPipeline(
        FlowMatchEulerDiscreteScheduler(**(dynamic | scheduler)), vae, text, _byte_tokenizer(path / "words"),
        transformer, is_distilled=variant == "klein-distilled",
    )  # fmt: skip


def _byte_tokenizer(folder: Path) -> Any:
    """Qwen's byte-level pairs without any merge, its special tokens, and the outline of its chat template."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate([*letters, *special])}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    config = {"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 131072, "pad_token": "<|endoftext|>",
              "eos_token": "<|im_end|>", "additional_special_tokens": special[1:], "chat_template": template,
              "errors": "replace", "unk_token": None, "split_special_tokens": False}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = AutoTokenizer.from_pretrained(str(folder))
    shutil.rmtree(folder)
    return loaded


def t5(width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=384,  # 32128
        d_model=width,  # 4096
        d_kv=16,  # 64
        d_ff=2 * width,  # 10240
        num_layers=2,  # 24
        num_heads=2,  # 64
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)


def t5_tokenizer(folder: Path, length: int) -> T5TokenizerFast:
    """A unigram model of the 256 bytes, as T5's falls back to: the special tokens are T5's."""
    special = ["<pad>", "</s>", "<unk>"]
    pieces = [(one, 0.0) for one in special] + [(f"<0x{b:02X}>", -8.0) for b in range(256)]
    pieces += [(chr(c), -3.0) for c in range(33, 127)] + [("\u2581", -2.0)]
    made = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "T5TokenizerFast", "model_max_length": length, "extra_ids": 0,
              "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = T5TokenizerFast.from_pretrained(str(folder), extra_ids=0)
    shutil.rmtree(folder)
    return loaded


def _unet(variant: Variant) -> UNet2DConditionModel:
    blocks = 3 if variant == "sdxl" else 4
    down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    if variant == "sdxl":
        down, up = ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2, ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32, 32)[:blocks],  # 320, 640, 1280, 1280
        norm_num_groups=8,  # 32
        layers_per_block=2,
        down_block_types=down,
        up_block_types=up,
        **_UNET[variant],
    )


def _vae(latent_channels: int, **changes: object) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8, 8, 8),  # 128, 256, 512, 512
        norm_num_groups=2,  # 32
        layers_per_block=1,  # 2
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=latent_channels,
        sample_size=64,
        **changes,
    )


def _text(kind: str, **changes: object) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        num_hidden_layers=2,  # 12, 23 and 32
        max_position_embeddings=77,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
        **_TEXT[kind],
        **changes,
    )


def clip_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's 256 byte symbols, each alone and ending a word, and no merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    symbols = [chr(b) for b in printable] + [chr(256 + n) for n in range(len(rest))]
    words = [*symbols, *(s + "</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    made = CLIPTokenizer.from_pretrained(folder, model_max_length=77, pad_token=pad)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return made


def _canonical_text_names(file: Path) -> None:
    found = {name.removeprefix("text_model."): t for name, t in load_file(file).items()}
    tensors = {name if name.startswith("text_projection.") else f"text_model.{name}": t for name, t in found.items()}
    save_file(tensors, file, {"format": "pt"})


def released_is_freed(family: Family) -> None:
    """Each part's memory is free once it is let go, and it comes again as it was."""
    for name in list(family.parts):
        before = {k: v.clone() for k, v in family.parts[name].state_dict().items()}
        alive = weakref.ref(family.parts[name])
        family.parts.release(name)
        gc.collect()
        assert alive() is None, f"{name} is still in memory"
        again = family.parts[name].state_dict()
        assert before.keys() == again.keys() and all(torch.equal(before[k], again[k]) for k in before), name
