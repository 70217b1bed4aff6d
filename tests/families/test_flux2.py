"""FLUX.2 klein: what its stock pipeline does around the denoiser, and what only this family has."""

from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub.utils import filter_repo_objects
from support.bases import tiny_base
from support.bench import settled
from support.photos import pictures
from torch.testing import assert_close

from finetune import families
from finetune.errors import RecipeError
from finetune.families.base import Family, read
from finetune.files import layouts
from finetune.proof.labels import made_for_another
from finetune.sampling.request import SampleRequest
from finetune.sampling.session import Session


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("klein") / "base", "klein")


@pytest.fixture(scope="module")
def family(base: Path) -> Family:
    return families.load(str(base))


def test_captions_are_what_the_pipeline_makes_of_them(base: Path, family: Family) -> None:
    captions = ["a red cup", "", "a long caption, " * 80]
    expected, _ = DiffusionPipeline.from_pretrained(base).encode_prompt(captions)
    text = read(family, captions)
    assert text.mask is None
    assert_close(text.tokens, expected, rtol=0, atol=1e-6)


def test_latents_are_the_pipelines_in_the_autoencoders_own_cells(base: Path, family: Family) -> None:
    pipe = DiffusionPipeline.from_pretrained(base)
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moments = family.encode_images(pixels)
    latents = family.latents(moments, torch.zeros_like(moments.mean))
    with torch.no_grad():
        assert_close(pipe._patchify_latents(latents), pipe._encode_vae_image(pixels, None), rtol=0, atol=1e-5)
        assert_close(family.decode_latents(latents), pipe.vae.decode(moments.mean).sample, rtol=0, atol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_picture_is_the_pipelines_own(base: Path, family: Family, guidance: float) -> None:
    shot = SampleRequest("a cup", 3, steps=3, width=64, height=48, guidance=guidance)
    ours = Session(family).generate(shot).image
    theirs = DiffusionPipeline.from_pretrained(base)(
        prompt="a cup", num_inference_steps=3, width=64, height=48, guidance_scale=guidance,
        generator=torch.Generator().manual_seed(3),
    ).images[0]  # fmt: skip
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


def test_training_shifts_times_as_the_sampler_does_with_many_steps(family: Family) -> None:
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    for tokens in (256, 1024, 4096):
        factor = family.process.path.shift.factor(tokens * 4)  # type: ignore[attr-defined]
        many, few = (torch.tensor(compute_empirical_mu(tokens, steps)).exp().item() for steps in (200, 20))
        assert factor == pytest.approx(many, rel=1e-3) and few > factor * 1.5


def test_a_distilled_base_needs_the_word_and_the_undistilled_one_does_not(base: Path, tmp_path: Path) -> None:
    distilled, data = tiny_base(tmp_path / "base", "klein-distilled"), pictures(tmp_path / "data")
    with pytest.raises(RecipeError, match="distilled: few steps"):
        settled(distilled, data)
    assert settled(distilled, data, objective__distilled=True).recipe.sample.guidance == 1.0
    assert settled(base, data).recipe.sample.guidance == 4.0


def test_the_hub_is_asked_for_all_of_a_base(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[str]] = {}

    def download(name: str, **wanted: list[str]) -> str:
        asked.update(wanted)
        return str(base)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    families.detect("org/klein")
    files = sorted(str(p.relative_to(base)) for p in base.rglob("*") if p.is_file())
    patterns = {"allow_patterns": asked["allow_patterns"], "ignore_patterns": asked["ignore_patterns"]}
    assert "tokenizer/chat_template.jinja" in files
    assert list(filter_repo_objects(files, **patterns)) == files


@pytest.mark.parametrize("said", ["flux2_klein_4b", "flux_2_klein_4b", "Flux.2-klein-4b/lora", "flux-2-klein"])
def test_files_that_say_flux2_in_other_programs_words_are_of_this_line(family: Family, said: str) -> None:
    """ai-toolkit's, musubi's two, ours."""
    for key in ("ss_base_model_version", "modelspec.architecture"):
        file = layouts.AdapterFile({}, "kohya", {key: said}, (), (), ())
        assert made_for_another(file, family.facts) == ""
        assert "made for FLUX.2" in made_for_another(file, family.facts._replace(family="flux"))
