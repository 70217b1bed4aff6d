"""Adapter folders, their metadata, and proof: what was written is what was trained, and what was damaged fails."""

import getpass
import hashlib
import json
import re
import socket
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from support.adapter_files import ABOUT, NAME, cli, drop, header_metadata
from support.adapters import dense
from support.kohya import kohya_file
from torch import Tensor

from finetune import families
from finetune import tensors as weights
from finetune.adapters.change import AdapterState, live_name
from finetune.adapters.lora import Lora
from finetune.errors import BaseError, RunError, VerifyError
from finetune.families.sd import StableDiffusion
from finetune.files import layouts, metadata
from finetune.files.metadata import About
from finetune.proof.export import convert, export, inspect
from finetune.reporting import public as published


def strings(folder: Path) -> dict[str, str]:
    """Every text that a folder's files hold."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.suffix == ".safetensors":
            found |= {f"{path.name}: {k}": f"{k} {v}" for k, v in header_metadata(path).items()}
        else:
            found[path.name] = path.read_text()
    return found


# -- the adapter folder -----------------------------------------------------------------------------------------------


def test_the_folder_holds_the_file_its_sidecar_the_master_and_a_card(run: Path) -> None:
    found = {str(p.relative_to(run / "adapter")) for p in (run / "adapter").rglob("*") if p.is_file()}
    peft = {f"peft/{c}/{f}" for c in ("unet", "text_encoder") for f in (layouts.PEFT_WEIGHTS, layouts.PEFT_CONFIG)}
    assert found == {f"{NAME}.safetensors", f"{NAME}.json", "README.md", *peft}
    sidecar = json.loads((run / "adapter" / f"{NAME}.json").read_text())
    assert (sidecar["activation text"], sidecar["sd version"], sidecar["preferred weight"]) == ("sks", "SD1", 1.0)
    assert "`sks`" in (run / "adapter" / "README.md").read_text()


def test_the_metadata_is_what_readers_look_for(file: Path, modules: AdapterState) -> None:
    told = header_metadata(file)
    content = file.read_bytes()
    header = struct.unpack("<Q", content[:8])[0]
    digest = hashlib.sha256(content[8 + header :]).hexdigest()
    wanted = {
        "format": "pt",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4.0",
        "ss_output_name": NAME,
        "ss_tag_frequency": '{"1_trigger": {"sks": 6}}',
        "sshs_model_hash": digest,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.trigger_phrase": "sks",
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": "64x64",
        "modelspec.hash_sha256": f"0x{digest}",
        "finetune.recipe": ABOUT.recipe,
        "finetune.base": "org/tiny",
        "finetune.dataset_license": "CC0",
    }
    assert {key: told.get(key) for key in wanted} == wanted
    assert "lora_adapter_metadata" not in told
    assert metadata.about(told) == ABOUT


@pytest.mark.parametrize(
    ("variant", "prediction", "version", "architecture"),
    [
        ("sd1", "epsilon", "sd_v1", "stable-diffusion-v1/lora"),
        ("sd2", "epsilon", "sd_v2", "stable-diffusion-v2-512/lora"),
        ("sd2", "v", "sd_v2_v", "stable-diffusion-v2-768-v/lora"),
    ],
)
def test_the_base_is_named_in_kohyas_and_modelspecs_words(
    variant: str, prediction: str, version: str, architecture: str
) -> None:
    facts = families.detect("pocket")._replace(variant=variant, prediction=prediction)
    told = metadata.make_metadata(About.of(facts), {"unet.x": Lora(torch.ones(1, 2), torch.ones(2, 1), 1.0)}, "x", {})
    assert (told["ss_base_model_version"], told["modelspec.architecture"]) == (version, architecture)


def test_nothing_written_names_this_machine_or_its_user(tmp_path: Path, base: str, modules: AdapterState) -> None:
    export(modules, tmp_path / "adapter", NAME, ("universal", "diffusers", "merged"), "float32", ABOUT, base)
    user = getpass.getuser()
    for where, text in strings(tmp_path / "adapter").items():
        for own in (str(tmp_path), base, str(Path.home()) + "/", socket.gethostname()):
            assert own not in text, where
        assert not re.search(rf"\b{user}\b(?!\w)", text) or "tokenizer" in where, where
        assert where.startswith("tokenizer") or not published.leak(text).startswith("a local path"), where


@pytest.mark.parametrize(
    "leak",
    ["/home/ann/photos", "C:\\Users\\ann", "see /mnt/disk/x", 'path = "/srv/a/b"', "~/mug", "file:///x", "\\\\nas\\x"],
)
def test_a_local_path_anywhere_stops_the_export(tmp_path: Path, modules: AdapterState, leak: str) -> None:
    for field in ("title", "recipe", "dataset_license", "base"):
        with pytest.raises(RunError, match=r"local path"):
            export(modules, tmp_path, NAME, ("universal",), "float32", replace(ABOUT, **{field: leak}))


@pytest.mark.parametrize("fine", ["https://x.org/a/b", "and/or", "org/model", "CC-BY 4.0", "a 1/2 mug", "w/o lid"])
def test_a_slash_alone_is_no_path(fine: str) -> None:
    metadata.refuse_local({"title": fine})


def test_a_host_name_is_refused_unless_the_user_wrote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "annas-laptop")
    with pytest.raises(RunError, match="annas-laptop"):
        metadata.refuse_local({"finetune.version": "built on annas-laptop"})
    metadata.refuse_local({"title": "annas-laptop"}, replace(ABOUT, trigger="annas-laptop"))


def test_the_header_of_a_full_size_adapter_stays_under_1_mib() -> None:
    """SD 1.5 with every linear layer and convolution as a target, names at their longest."""
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.{}"
    modules = {name.format(n): Lora(torch.ones(1, 1), torch.ones(1, 1), 0.3) for n in range(380)}
    tensors = layouts.universal(modules, torch.float32, "sd")
    about = replace(ABOUT, recipe="x" * 5000)
    told = metadata.make_metadata(about, modules, NAME, tensors)
    header = json.dumps({k: {"dtype": "F32", "shape": [1280, 1280], "data_offsets": [10**9, 10**9]} for k in tensors})
    assert len(header) + len(json.dumps(told)) < 1 << 20
    with pytest.raises(RunError, match="1 MiB"):
        metadata.make_metadata(replace(about, recipe="x" * (1 << 20)), modules, NAME, tensors)


def test_the_payload_hash_does_not_depend_on_the_metadata(file: Path, tmp_path: Path, modules: AdapterState) -> None:
    other = replace(ABOUT, title="Another", trigger="zwx")
    export(modules, tmp_path / "b", NAME, ("universal",), "float32", other)
    assert weights.payload_sha256(file) == weights.payload_sha256(tmp_path / "b" / f"{NAME}.safetensors")


def weight(pipeline: StableDiffusionPipeline, name: str) -> Tensor:
    component, _, path = name.partition(".")
    whole = getattr(pipeline, component)
    module = whole.get_submodule(live_name(f"{component}.{path}", dict(whole.named_modules())))
    return module.weight.detach().double()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_merged_pipeline_is_base_plus_change_and_reports_what_rounding_lost(
    tmp_path: Path, base: str, modules: AdapterState, dtype: str
) -> None:
    done = export(modules, tmp_path, NAME, ("merged",), dtype, ABOUT, base)
    assert done.merged and done.universal is None
    before = StableDiffusionPipeline.from_pretrained(base)
    after = StableDiffusionPipeline.from_pretrained(done.merged.folder)
    wrong = whole = 0.0
    for name, change in dense(modules).items():
        old, new = (weight(pipeline, name) for pipeline in (before, after))
        wrong += float((new - old - change).square().sum())
        whole += float(change.square().sum())
    assert done.merged.lost == pytest.approx((wrong / whole) ** 0.5, rel=1e-3, abs=1e-7)
    assert done.merged.lost < {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}[dtype]
    keys = load_file(done.merged.folder / "text_encoder" / "model.safetensors")
    assert all(key.startswith("text_model.") for key in keys)


def test_a_small_change_is_seen_to_drown_in_bfloat16(tmp_path: Path, base: str, modules: AdapterState) -> None:
    small = {name: lora._replace(scale=lora.scale * 1e-3) for name, lora in modules.items()}
    done = export(small, tmp_path, NAME, ("merged",), "bfloat16", ABOUT, base)
    assert done.merged and done.merged.lost > 0.3


# -- inspect and convert ----------------------------------------------------------------------------------------------


def test_inspect_tells_all_without_a_base(file: Path, modules: AdapterState) -> None:
    found = inspect(file)
    assert (found.layout, found.trigger, found.base, found.base_version) == ("universal", "sks", "org/tiny", "sd_v1")
    assert found.recipe == ABOUT.recipe and found.payload_sha256 == found.stated_sha256
    assert found.ranks == {"4": len(found.modules)} and set(found.trained_ranks) == {"2", "4"}
    norms = {part.module: part.norm for part in found.modules}
    for name, change in dense(modules).items():
        assert norms[name] == pytest.approx(float(change.norm()), rel=1e-4)
    code, output = cli("inspect", file, "--json")
    assert code == 0 and json.loads(output)["components"]["text_encoder"] == found.components["text_encoder"]
    code, output = cli("inspect", file)
    assert code == 0 and "sks" in output and len(output.splitlines()) < 24


def test_inspect_shows_a_strangers_kohya_names_as_they_are(tmp_path: Path, modules: AdapterState) -> None:
    save_file(kohya_file(modules), tmp_path / "a.safetensors")
    found = inspect(tmp_path / "a.safetensors")
    assert {part.module for part in found.modules} == {StableDiffusion.kohya_name(name) for name in modules}
    assert set(found.components) == {"unet", "text_encoder"} and found.trigger == ""


def test_every_layout_converts_into_every_other_and_back(run: Path, tmp_path: Path, modules: AdapterState) -> None:
    sources = {"peft": run, "universal": run / "adapter" / f"{NAME}.safetensors"}
    for number, (layout, source) in enumerate(sources.items()):
        for other in ("diffusers", "peft", "universal"):
            out = tmp_path / f"{number}{layout}-{other}"
            assert convert(source, other, out) < 1e-6
            again = layouts.read_adapter(out)
            assert set(modules) <= set(again.modules) and not again.problems
            assert metadata.about(again.metadata) == ABOUT


def test_converting_names_what_is_missing(
    tmp_path: Path, run: Path, file: Path, modules: AdapterState, base: str
) -> None:
    save_file(kohya_file(modules), tmp_path / "a.safetensors")
    with pytest.raises(BaseError, match="only the base's own names"):
        convert(tmp_path / "a.safetensors", "universal", tmp_path / "b.safetensors")
    save_file(drop(kohya_file(modules)), tmp_path / "a.safetensors")
    with pytest.raises(VerifyError, match="up tensor is missing"):
        convert(tmp_path / "a.safetensors", "universal", tmp_path / "b.safetensors", base)
    with pytest.raises(RunError, match="exists"):
        convert(run, "peft", tmp_path)
    assert not (tmp_path / "b.safetensors").exists()


def test_a_run_exports_as_a_merged_pipeline_from_its_own_base(run: Path, tmp_path: Path) -> None:
    code, output = cli("export", "--from", run, "--layout", "merged", "--out", tmp_path / "whole", "--dtype", "float16")
    assert code == 0 and "lost" in output and (tmp_path / "whole" / "model_index.json").is_file()
