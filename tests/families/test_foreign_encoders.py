"""Text encoders that we do not train, and that the files of other programs change, are changed as these say."""

from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import random_lora
from support.bases import tiny_base
from torch import Tensor
from torch.testing import assert_close

from finetune import families
from finetune.adapters.change import AdapterState
from finetune.adapters.lora import delta
from finetune.files import layouts
from finetune.proof import verify
from finetune.proof.export import base_sites, convert
from finetune.sampling.request import AdapterWeight, SampleRequest, SessionOptions
from finetune.sampling.session import Session


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("flux") / "base", "flux")


def flux_file(base: Path, folder: Path) -> tuple[Path, AdapterState]:
    """As sd-scripts writes it: the transformer, and CLIP-L under lora_te1_."""
    places = base_sites(str(base))
    names = [n for n in places if n.endswith(("attn.to_out.0", "self_attn.q_proj", "mlp.fc1"))]
    modules: AdapterState = {n: random_lora(places[n], 2, 0.5, i) for i, n in enumerate(names)}
    tensors = {}
    for name, one in modules.items():
        component, _, path = name.partition(".")
        original = families.family_class("flux").original(name)
        stem = "lora_te1_" + path if component == "text_encoder" else f"lora_unet_{original.name if original else path}"
        key = stem.replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": one.tensors()["down"], f"{key}.lora_up.weight": one.tensors()["up"]}
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
    save_file(tensors, folder / "theirs.safetensors")
    return folder / "theirs.safetensors", modules


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_clip_changes_of_a_flux_file_are_used_whole(flux: Path, tmp_path: Path) -> None:
    file, modules = flux_file(flux, tmp_path)
    report = verify.verify(file, str(flux))
    assert report.hit == len(modules) and report.problems == (), report.problems
    effects = {effect.component: effect for effect in report.effects}
    assert effects["text_encoder"].modules and effects["text_encoder"].output
    convert(file, "universal", tmp_path / "ours.safetensors", str(flux))
    written = layouts.read_adapter(tmp_path / "ours.safetensors", base_sites(str(flux)), "flux").modules
    for name, one in modules.items():
        assert_close(delta(written[name]), delta(one), rtol=1e-5, atol=1e-6)
    only = {k: t for k, t in load_file(file).items() if not k.startswith("lora_te1_")}
    save_file(only, tmp_path / "without.safetensors")
    pictures = [
        drawn(flux, path, merged)
        for path, merged in ((file, False), (file, True), (tmp_path / "without.safetensors", False))
    ]
    assert_close(pictures[0], pictures[1], rtol=0, atol=2)
    assert float((pictures[0] - pictures[2]).abs().max()) > 2


def drawn(base: Path, file: Path, merged: bool = False) -> Tensor:
    options = SessionOptions("fp32", safety_checker=False, merged=merged)
    session = Session.open(str(base), ["a mug"], [AdapterWeight(file, 1.0)], options)
    picture = session.generate(SampleRequest("a mug", steps=2, width=64, height=64, seed=1))
    return torch.from_numpy(numpy.asarray(picture.image).copy()).float()


def test_a_session_goes_back_to_the_base_it_was(flux: Path, tmp_path: Path) -> None:
    file, _ = flux_file(flux, tmp_path)
    request = SampleRequest("a mug", steps=1, width=64, height=64, seed=1)
    session = Session.open(str(flux), ["a mug"], options=SessionOptions("fp32", safety_checker=False))
    before = session.generate(request).image.tobytes()
    session.exchange([AdapterWeight(file, 1.0)])
    assert session.generate(request).image.tobytes() != before
    session.exchange([])
    assert session.generate(request).image.tobytes() == before
