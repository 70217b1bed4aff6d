"""Small bases to draw with, one with a safety checker, and two adapter files; nobody may change them."""

from pathlib import Path

import pytest
import torch
from support.adapters import small_adapter
from support.bases import tiny_base

from finetune import tensors as weights
from finetune.files import layouts
from finetune.sampling.request import SampleRequest
from finetune.sampling.session import Session


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    return str(tiny_base(tmp_path_factory.mktemp("base") / "sd15", "sd15"))


@pytest.fixture(scope="session")
def flux(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base") / "flux", "flux")


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    for seed in (1, 2):
        weights.write_tensors(
            layouts.universal(small_adapter(seed), torch.float32, "sd"), folder / f"{seed}.safetensors", {}
        )
    return sorted(folder.glob("*.safetensors"))


@pytest.fixture
def batches(monkeypatch) -> list[list[SampleRequest]]:
    """Every batch that sessions generate, as it comes."""
    seen, generate = [], Session.generate_together

    def noted(session, requests):
        seen.append(list(requests))
        return generate(session, requests)

    monkeypatch.setattr(Session, "generate_together", noted)
    return seen


@pytest.fixture(scope="session")
def safe(tmp_path_factory) -> str:
    """A base with a real safety checker, small, that finds something to blank in every picture."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    base = tiny_base(tmp_path_factory.mktemp("safe") / "sd15", "sd15")
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=small, vision_config=vision, projection_dim=4)
    checker = StableDiffusionSafetyChecker(config)
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(-2)
    checker.save_pretrained(base / "safety_checker")
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(base / "feature_extractor")
    return str(base)
