"""The eyes see what transformers' own model and processor see; their measures are plain means of cosines."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from support.bases import clip_tokenizer
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from finetune.errors import BaseError
from finetune.evaluation import similarity as likeness
from finetune.evaluation.similarity import FeatureExtractor, ImageTransform

try:
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil as BitProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as CLIPProcessor
except ImportError:  # transformers 4
    from transformers import BitImageProcessor as BitProcessor
    from transformers import CLIPImageProcessor as CLIPProcessor

VERSION = int(transformers.__version__.split(".")[0])
SIZES = [(32, 32), (64, 64), (50, 37), (37, 91), (7, 5), (200, 129)]
CAPTIONS = ["a red apple on a blue background", "a car", "ein Bär, größer", "", "a car " * 60]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eyes") / "clip"
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    vision = tower | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8, initializer_factor=2.0))
    model.save_pretrained(folder)
    CLIPProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    clip_tokenizer(folder / "words").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eyes") / "dinov2"
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7, layerscale_value=0.5
    )
    Dinov2Model(config).save_pretrained(folder)
    BitProcessor(size={"shortest_edge": 40}, crop_size={"height": 35, "width": 35}).save_pretrained(folder)
    return folder


def picture(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Big blots under fine noise: scaling matters, and so does where it is cut."""
    chance = np.random.default_rng(seed)
    blots = Image.fromarray(chance.integers(0, 256, (4, 5, 4), dtype=np.uint8)).resize(size)
    noise = chance.integers(0, 64, (size[1], size[0], 4), dtype=np.uint8)
    whole = Image.fromarray((np.asarray(blots) // 2 + noise).astype(np.uint8))
    return whole if mode == "RGBA" else whole.convert("LA") if mode == "LA" else whole.convert("RGB").convert(mode)


PICTURES = [picture(size, seed=i) for i, size in enumerate(SIZES)]

# --- embeddings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_a_style_is_how_the_features_of_patches_vary_together(kind, request):
    """By definition: the covariance over the patches, the class token left out, at three quarters of the depth."""
    folder = request.getfixturevalue(kind)
    eyes = FeatureExtractor.load(folder)
    tower = eyes.encoder.vision_model if kind == "clip" else eyes.encoder
    with torch.no_grad():
        pixels = torch.stack([eyes.lens.through(one) for one in PICTURES])
        layers = tower(pixels, output_hidden_states=True).hidden_states
    assert len(layers) == 3
    expected = torch.stack([torch.cov(one[1:].T).flatten() for one in layers[2]])
    torch.testing.assert_close(eyes.style_of_pictures(PICTURES), F.normalize(expected), rtol=1e-3, atol=1e-5)


def test_clip_sees_and_reads_as_transformers_does(clip):
    model, words = CLIPModel.from_pretrained(clip), transformers.CLIPTokenizer.from_pretrained(clip)
    pixels = CLIPProcessor.from_pretrained(clip)(PICTURES, return_tensors="pt").pixel_values
    ids = words(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**ids, pixel_values=pixels)
    eyes = FeatureExtractor.load(clip)
    seen, read = eyes.of_pictures(PICTURES), eyes.of_captions(CAPTIONS)
    torch.testing.assert_close(seen, expected.image_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(read, expected.text_embeds, rtol=0, atol=1e-6)
    assert likeness.pairwise(seen) < 0.999 and likeness.pairwise(read) < 0.999, "the inputs must matter"


def test_dinov2_sees_as_transformers_does(dinov2):
    pixels = BitProcessor.from_pretrained(dinov2)(PICTURES, return_tensors="pt").pixel_values
    with torch.no_grad():
        tokens = Dinov2Model.from_pretrained(dinov2)(pixels).last_hidden_state
    seen = FeatureExtractor.load(dinov2).of_pictures(PICTURES)
    torch.testing.assert_close(seen, F.normalize(tokens[:, 0]), rtol=0, atol=1e-6)
    assert likeness.pairwise(seen) < 0.999


def test_embeddings_are_unit_rows_whatever_the_batch(clip, monkeypatch):
    eyes = FeatureExtractor.load(clip)
    whole = eyes.of_pictures(PICTURES), eyes.of_captions(CAPTIONS)
    monkeypatch.setattr(likeness, "BATCH", 4)
    for one, other in zip(whole, (eyes.of_pictures(PICTURES), eyes.of_captions(CAPTIONS)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        torch.testing.assert_close(one.norm(dim=1), torch.ones(len(one)))
        assert one.dtype == torch.float32 and not one.requires_grad


def test_a_model_saved_in_half_precision_computes_in_single(clip, tmp_path):
    CLIPModel.from_pretrained(clip, dtype=torch.float16).save_pretrained(shutil.copytree(clip, tmp_path / "half"))
    assert FeatureExtractor.load(tmp_path / "half").encoder.dtype == torch.float32


def test_eyes_for_pictures_only_refuse_captions(dinov2):
    with pytest.raises(BaseError, match="cannot judge captions"):
        FeatureExtractor.load(dinov2).of_captions(["a car"])


# --- the lens -------------------------------------------------------------------------------------------------------

CLIP_L: dict[str, Any] = {
    "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 224,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
"""as published with ViT-L/14"""
DINO_B: dict[str, Any] = {
    "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
    "do_rescale": True, "do_resize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 256},
}  # fmt: skip
"""as published with DINOv2 base"""
LOOKS: dict[str, dict[str, Any]] = {
    "clip": CLIP_L,
    "dinov2": DINO_B,
    "odd, wider than high": DINO_B | {"size": {"shortest_edge": 41}, "crop_size": {"height": 30, "width": 37}},
    "crop wider than the picture": DINO_B | {"size": {"shortest_edge": 30}, "crop_size": {"height": 37, "width": 36}},
    "squeezed": DINO_B | {"size": {"height": 30, "width": 41}, "do_center_crop": False, "resample": 2},
    "never resized": DINO_B | {"do_resize": False, "crop_size": 33},
    "not normalised": DINO_B | {"do_normalize": False, "size": 20, "crop_size": 20, "rescale_factor": 1 / 127.5},
    "says as little as may be": {key: CLIP_L[key] for key in ("size", "crop_size", "image_mean", "image_std")},
    "not rescaled": DINO_B | {"do_rescale": False, "size": 20, "crop_size": 20, "image_mean": [127.5] * 3},
}


@pytest.mark.parametrize("look", LOOKS)
def test_the_lens_is_the_processor_bit_for_bit(look):
    kind = CLIPProcessor if look == "clip" else BitProcessor
    lens = ImageTransform.of(LOOKS[look])
    for size in SIZES:
        expected = kind.from_dict(LOOKS[look])(picture(size), return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(lens.through(picture(size)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "I", *(["RGBA", "LA"] if VERSION > 4 else [])])
def test_the_lens_is_the_processor_in_every_mode(mode):
    shown = picture((90, 70), mode)
    expected = CLIPProcessor.from_dict(CLIP_L)(shown, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(ImageTransform.of(CLIP_L).through(shown), expected, rtol=0, atol=0)


def test_white_is_behind_transparency():
    lens, clear = ImageTransform.of(CLIP_L), Image.new("RGBA", (64, 64), (200, 30, 30, 0))
    assert torch.equal(lens.through(clear), lens.through(Image.new("RGB", (64, 64), "white")))


# --- the measures ---------------------------------------------------------------------------------------------------


def unit(n: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, 24, generator=torch.Generator().manual_seed(seed)) + 0.3)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(F.cosine_similarity(a.double(), b.double(), dim=0))


@pytest.mark.parametrize("n, m", [(2, 1), (5, 3), (40, 17)])
def test_the_measures_are_means_of_cosines(n, m):
    a, b = unit(n, 0), unit(m, 1)
    pairs = [cosine(a[i], a[j]) for i in range(n) for j in range(i + 1, n)]
    assert likeness.pairwise(a) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert likeness.diversity(a) == pytest.approx(1 - sum(pairs) / len(pairs), abs=1e-6)
    crossed = [cosine(x, y) for x in a for y in b]
    assert likeness.cross(a, b) == pytest.approx(sum(crossed) / len(crossed), abs=1e-6)
    matched = [cosine(x, y) for x, y in zip(a, a.roll(1, 0), strict=True)]
    assert likeness.clip_t(a, a.roll(1, 0)) == pytest.approx(sum(matched) / n, abs=1e-6)


def test_copies_are_wholly_alike_and_opposites_not_at_all():
    a = unit(1, 0).repeat(3, 1)
    assert likeness.pairwise(a) == pytest.approx(1) and likeness.diversity(a) == pytest.approx(0, abs=1e-6)
    assert likeness.cross(a, -a) == pytest.approx(-1)


def test_one_picture_has_no_pairs_and_one_caption_does_not_stand_for_all():
    with pytest.raises(ZeroDivisionError):
        likeness.pairwise(unit(1, 0))
    with pytest.raises(RuntimeError):
        likeness.clip_t(unit(3, 0), unit(1, 1))


# --- folders --------------------------------------------------------------------------------------------------------


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def said(name: str, **changes: object) -> Callable[[Path], None]:
    """None takes a key away."""

    def change(folder: Path) -> None:
        table = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({k: v for k, v in table.items() if v is not None}))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        held = {name: tensor.clone() for name, tensor in held.items()}
        change(held)
        save_file(held, folder / "model.safetensors", {"format": "pt"})

    return rewrite


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_words(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


LOOK = "preprocessor_config.json"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, r"cannot read .*config.json: No such file"),
    "no config": (gone("config.json"), r"cannot read .*clip/config.json: No such file"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), r"config.json is not JSON: Expecting"),
    "another sort of model": (said("config.json", model_type="bert"), r"'bert', is not one of clip, dinov2"),
    "no sort of model": (said("config.json", model_type=None), r"None, is not one of clip, dinov2"),
    "no weights": (gone("model.safetensors"), r"no file .*model.safetensors"),
    "pickled weights": (pickled, r"pickled weights only \(pytorch_model.bin\)"),
    "weights cut short": (cut_short, r"model.safetensors is truncated"),
    "a tensor missing": (
        tensors(lambda t: t.pop("visual_projection.weight")),
        r"1 tensors missing, visual_projection.weight",
    ),
    "a tensor too many": (
        tensors(lambda t: t.update({"classifier.weight": torch.ones(2)})),
        r"1 tensors unexpected, classifier.weight",
    ),
    "a tensor misshapen": (
        tensors(lambda t: t.update({"visual_projection.weight": torch.ones(8, 4)})),
        r"cannot be loaded as a CLIPModel",
    ),
    "no vocabulary": (without_words, r"no vocab.json and merges.txt in"),
    "no preprocessor": (gone(LOOK), rf"cannot read .*{LOOK}: No such file"),
    "no mean": (said(LOOK, image_mean=None), rf"{LOOK}: .*'image_mean'"),
    "a size unheard of": (said(LOOK, size={"longest_edge": 9}), rf"{LOOK}: .*'longest_edge'"),
    "two sorts of edge": (said(LOOK, size={"shortest_edge": 32, "longest_edge": 64}), rf"{LOOK}: .*'longest_edge'"),
    "any size": (said(LOOK, do_center_crop=False), "would differ in size"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_is_no_whole_model_is_refused_by_name(clip, tmp_path, damage):
    folder = shutil.copytree(clip, tmp_path / "clip")
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(BaseError, match=message) as refused:
        FeatureExtractor.load(folder)
    assert refused.value.hint


def test_pickled_weights_beside_the_others_are_left_alone(clip, tmp_path):
    folder = shutil.copytree(clip, tmp_path / "clip")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert torch.equal(
        FeatureExtractor.load(folder).of_pictures(PICTURES), FeatureExtractor.load(clip).of_pictures(PICTURES)
    )


def test_the_numbers_of_positions_that_old_files_hold_do_no_harm(clip, tmp_path):
    folder = shutil.copytree(clip, tmp_path / "clip")
    towers = [f"{tower}.embeddings.position_ids" for tower in ("text_model", "vision_model")]
    tensors(lambda t: t.update({name: torch.arange(17)[None] for name in towers}))(folder)
    assert torch.equal(
        FeatureExtractor.load(folder).of_captions(CAPTIONS), FeatureExtractor.load(clip).of_captions(CAPTIONS)
    )
