"""Stable Diffusion XL: text, sizes and names against diffusers' own pipeline and converter, at true size on meta."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file
from support.bases import released_is_freed, tiny_base
from support.bench import bench
from support.one_file import sdxl_file
from support.originals import in_sgm_names
from support.photos import pictures
from torch import Tensor
from torch.testing import assert_close

from finetune import families
from finetune.adapters import attach as adapters
from finetune.adapters.change import target_shapes
from finetune.data.images.buckets import Bucket, Size, fit, size_conditioning
from finetune.errors import BaseError, RecipeError
from finetune.families.base import Conditioning, components, read
from finetune.families.sdxl import StableDiffusionXL
from finetune.families.single_file import CONFIGS
from finetune.recipe import LoRA

CAPTIONS = ["a red cup", "", "a long caption, " * 40]
BOTH_TEXTS = ("denoiser", "text_encoder", "text_encoder_2")
GOLDEN = {
    # as kohya's own SDXL files name them
    "unet.down_blocks.0.resnets.1.conv1": "lora_unet_input_blocks_2_0_in_layers_2",
    "unet.down_blocks.0.downsamplers.0.conv": "lora_unet_input_blocks_3_0_op",
    "unet.down_blocks.1.resnets.0.conv_shortcut": "lora_unet_input_blocks_4_0_skip_connection",
    "unet.down_blocks.1.attentions.0.proj_in": "lora_unet_input_blocks_4_1_proj_in",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q":
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    "unet.down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0":
        "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_out_0",
    "unet.mid_block.attentions.0.transformer_blocks.3.ff.net.0.proj":
        "lora_unet_middle_block_1_transformer_blocks_3_ff_net_0_proj",
    "unet.mid_block.resnets.1.time_emb_proj": "lora_unet_middle_block_2_emb_layers_1",
    "unet.up_blocks.0.attentions.2.transformer_blocks.9.ff.net.2":
        "lora_unet_output_blocks_2_1_transformer_blocks_9_ff_net_2",
    "unet.up_blocks.1.upsamplers.0.conv": "lora_unet_output_blocks_5_2_conv",
    "unet.up_blocks.2.resnets.2.conv2": "lora_unet_output_blocks_8_0_out_layers_3",
    "text_encoder.text_model.encoder.layers.10.self_attn.q_proj":
        "lora_te1_text_model_encoder_layers_10_self_attn_q_proj",
    "text_encoder_2.text_model.encoder.layers.31.mlp.fc2": "lora_te2_text_model_encoder_layers_31_mlp_fc2",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "sdxl", "sdxl")


@pytest.fixture(scope="module")
def full() -> dict[str, torch.nn.Module]:
    """Of the published configs, at true size, without weights."""
    facts = families.detect("pocket")  # a skeleton asks no fact
    return StableDiffusionXL.on_meta(str(CONFIGS / "sdxl"), facts)


# -- text -------------------------------------------------------------------------------------------------------------


def test_captions_are_what_the_stock_pipeline_makes_of_them(base: Path) -> None:
    """T6. Penultimate states of both, no final norm, pooled of the second; its captions are filled up with token 0."""
    family = families.load(str(base))
    stock = StableDiffusionXLPipeline.from_pretrained(base)
    for caption in CAPTIONS:
        tokens, _, pooled, _ = stock.encode_prompt(caption, do_classifier_free_guidance=False)
        ours = read(family, [caption])
        assert_close(ours.tokens, tokens, rtol=0, atol=1e-6)
        assert_close(ours.pooled, pooled, rtol=0, atol=1e-6)
    assert family.tokenizers["text_encoder_2"].pad_token_id == 0 != family.tokenizers["text_encoder"].pad_token_id


def test_nothing_is_trained_that_the_unet_never_reads(base: Path, full: dict[str, torch.nn.Module]) -> None:
    """The first encoder's last layer: no gradient would reach it."""
    for preset in ("attention", "attention+ff", "all"):
        found = adapters.targets(full["text_encoder"], StableDiffusionXL.presets["text_encoder"], preset)
        assert {int(re.findall(r"layers\.(\d+)", n)[0]) for n in found} == set(range(11))
    second = adapters.targets(full["text_encoder_2"], StableDiffusionXL.presets["text_encoder_2"], "all")
    assert {int(re.findall(r"layers\.(\d+)", n)[0]) for n in second} == set(range(32))
    with pytest.raises(RecipeError, match="match no module"):
        adapters.targets(full["text_encoder"], {}, ["layers.11.*.q_proj"])
    b = bench(base, pictures(base.parent / "data"), adapter__components=BOTH_TEXTS, adapter__targets="all",
              adapter__text_encoder_targets="all")  # fmt: skip
    b.grow()
    assert all(bool(g.any()) for g in b.gradients().values()) and len(b.gradients()) == len(b.named())


# -- how a picture was cut --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (256, 128), (64, 64)])
@pytest.mark.parametrize("place", [0.0, 0.25, 1.0])
def test_the_frame_is_what_was_done_to_the_picture(size: tuple[int, int], place: float, flip: bool) -> None:
    """T4. The whole picture scaled, mirrored when it is, and cut where the frame says, is what training sees."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 18, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    bucket = Bucket(128, 128)
    told = size_conditioning(Size(*size), bucket, place, flip)
    assert told[:2] == size[::-1] and told[4:] == (128, 128)
    scale = max(128 / edge for edge in size)
    whole = picture.resize([round(edge * scale) for edge in size], Image.Resampling.LANCZOS)
    whole = whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else whole
    left, top = round(told.crop_left), round(told.crop_top)
    cut = whole.crop((left, top, left + 128, top + 128))
    seen = fit(picture, bucket, place, flip)
    assert np.abs(np.asarray(cut, dtype=float) - np.asarray(seen, dtype=float)).mean() < 3


def test_training_tells_the_unet_the_true_frame_of_each_visit(base: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", [(180, 128), (100, 100)])
    b = bench(base, data, train__batch=2, train__steps=20, data__crop="random", data__flip=True, data__max_aspect=1.0)
    seen = set()
    for k in range(20):
        for batch in b.step(k):
            for name, frame in zip(batch.names, batch.size.tolist(), strict=True):
                seen.add((name, tuple(frame)))
    lefts = {frame[3] for name, frame in seen if name == "00.png"}
    assert {frame[:2] for name, frame in seen if name == "00.png"} == {(128.0, 180.0)}
    assert {frame[:2] for name, frame in seen if name == "01.png"} == {(100.0, 100.0)}
    assert len(lefts) == 5 and max(lefts) == 52.0 and min(lefts) == 0.0  # five places, mirrored onto one another
    assert {frame[4:] for _, frame in seen} == {(128.0, 128.0)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_reach_the_sinusoid_unrounded(base: Path, dtype: torch.dtype) -> None:
    """T5. bf16 would make 1024 of 1023, and 3008 of 3000."""
    family = families.load(str(base), dtype)
    seen: list[Tensor] = []
    denoiser = family.parts["unet"]
    denoiser.add_time_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    sizes = torch.tensor([[1023.0, 3000.0, 17.0, 513.0, 1024.0, 1024.0]])
    family.predict(torch.zeros(1, 4, 8, 8), torch.tensor([5]), Conditioning(read(family, ["a"]), sizes))
    assert seen[0].dtype == torch.float32 and seen[0].tolist() == sizes.flatten().tolist()


def test_the_prediction_is_the_stock_unets_and_depends_on_the_frame(base: Path) -> None:
    family = families.load(str(base))
    stock = StableDiffusionXLPipeline.from_pretrained(base)
    noisy = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    t, text = torch.tensor([10, 900]), read(family, ["a cup", "a mug"])
    uncut = torch.tensor([[64.0, 128, 0, 0, 64, 128]] * 2)
    told = {"text_embeds": text.pooled, "time_ids": uncut}
    expected = stock.unet(noisy, t, encoder_hidden_states=text.tokens, added_cond_kwargs=told).sample
    assert_close(family.predict(noisy, t, Conditioning(text)), expected, rtol=0, atol=1e-6)
    assert_close(family.predict(noisy, t, Conditioning(text, uncut)), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(family.predict(noisy, t, Conditioning(text, uncut + 50)), expected, atol=1e-5)


# -- names, and true size ---------------------------------------------------------------------------------------------


def test_the_true_size_is_the_published_one(full: dict[str, torch.nn.Module]) -> None:
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in full.items()}
    assert counts == {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}
    presets = StableDiffusionXL.presets
    found = {p: len(adapters.targets(full["unet"], presets["unet"], p)) for p in presets["unet"]}
    assert found == {"attention": 560, "attention+ff": 722, "all": 788}  # kohya's LoRA has 722, its LoCon 788


def test_modules_have_the_names_that_kohyas_files_have(full: dict[str, torch.nn.Module]) -> None:
    places = target_shapes(full)
    assert GOLDEN.keys() <= places.keys()
    assert {name: StableDiffusionXL.kohya_name(name) for name in GOLDEN} == GOLDEN
    names = {StableDiffusionXL.kohya_name(name) for name in places}
    assert len(names) == len(places)
    for number in (1, 2):
        assert any(name.startswith(f"lora_te{number}_text_model_") for name in names)


def test_diffusers_converter_turns_every_name_back(base: Path) -> None:
    """An independent reading of the original code's names: a whole UNet there and back."""
    unet: Any = components(families.load(str(base)))["unet"]
    ours = in_sgm_names(unet)
    back = convert_ldm_unet_checkpoint(dict(ours), config=dict(unet.config))
    assert back.keys() == unet.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in unet.state_dict().items())


# -- one file ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_file(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small base as the original code would have written it, and its configs in place of the published ones."""
    return sdxl_file(base, tmp_path / "sdxl.safetensors", monkeypatch)


def test_one_file_is_the_model_it_was_written_from(base: Path, one_file: Path) -> None:
    facts = families.detect(str(one_file))
    assert (facts.family, facts.prediction, facts.prediction_known) == ("sdxl", "epsilon", False)
    assert facts.dtype == "fp32"
    ours, theirs = families.load(str(one_file)), families.load(str(base))
    for part in theirs.parts:
        expected, found = theirs.parts[part].state_dict(), ours.parts[part].state_dict()
        assert expected.keys() == found.keys() and all(torch.equal(expected[n], found[n]) for n in expected), part
    assert_close(read(ours, CAPTIONS), read(theirs, CAPTIONS), rtol=0, atol=0)
    released_is_freed(ours)
    assert target_shapes(StableDiffusionXL.on_meta(str(one_file), facts)) == target_shapes(components(theirs))


def test_one_file_says_that_it_predicts_v_and_ends_in_noise(one_file: Path) -> None:
    tensors = load_file(one_file)
    save_file(tensors | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, one_file)
    facts = families.detect(str(one_file))
    assert (facts.prediction, facts.zero_snr) == ("v", True) and "v_pred key" in facts.evidence
    alpha, _ = families.load(str(one_file)).process.path.scales(torch.tensor([999]))
    assert float(alpha) == 0.0


@pytest.mark.parametrize(
    "lost", ["conditioner.embedders.1.model.text_projection", "conditioner.embedders.1.model.ln_final.bias",
             "model.diffusion_model.label_emb.0.2.bias"],
)  # fmt: skip
def test_a_weight_that_one_file_lacks_is_named(one_file: Path, lost: str) -> None:
    tensors = load_file(one_file)
    del tensors[lost]
    save_file(tensors, one_file)
    with pytest.raises(BaseError, match="1 weight is missing"):
        families.load(str(one_file)).parts.load()


# -- adapters ---------------------------------------------------------------------------------------------------------


def test_the_three_components_are_trained_each_by_its_own_word(base: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data")
    for wanted in (("denoiser",), ("text_encoder_2",), BOTH_TEXTS):
        b = bench(base, data, adapter__components=wanted)
        before = b.weights()
        b.train()
        moved = {n.partition(".")[0] for n, w in b.weights().items() if not torch.equal(w, before[n])}
        assert moved == {"unet" if c == "denoiser" else c for c in wanted}
        frozen = {e for e in ("text_encoder", "text_encoder_2") if e not in wanted}
        assert set(b.step()[0].text) == frozen  # what is frozen comes from the cache


def test_a_component_that_a_base_has_not_is_an_error(base: Path, tmp_path: Path) -> None:
    sd15, data = tiny_base(tmp_path / "sd15", "sd15"), pictures(tmp_path / "data")
    with pytest.raises(RecipeError, match="no text_encoder_2 that can be trained"):
        bench(sd15, data, adapter__components=("denoiser", "text_encoder_2"))


def test_a_distilled_base_needs_a_word(tmp_path: Path) -> None:
    made = tiny_base(tmp_path / "turbo", "sdxl", timestep_spacing="trailing")
    file = made / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace("DDIMScheduler", "EulerAncestralDiscreteScheduler"))
    data = pictures(tmp_path / "data")
    with pytest.raises(RecipeError, match="distilled: few steps") as refused:
        bench(made, data)
    assert "objective.distilled = true" in refused.value.hint
    assert bench(made, data, objective__distilled=True).train()


def test_adapters_of_a_recipe_start_at_nothing(base: Path) -> None:
    wanted = LoRA.model_validate({"rank": 2, "components": BOTH_TEXTS, "targets": "all"})
    family = families.load(str(base))
    before = read(family, CAPTIONS)
    adapters.attach(components(family), family.presets, wanted, 0)
    after = read(family, CAPTIONS)
    assert torch.equal(before.tokens, after.tokens) and torch.equal(before.pooled, after.pooled)
