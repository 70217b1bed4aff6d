"""Adapter folders, their metadata, and proof: what was written is what was trained, and what was damaged fails."""

import getpass
import hashlib
import json
import re
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from support.adapters import dense, random_lora
from support.bases import tiny_base
from support.kohya import kohya_file
from torch import Tensor
from typer.testing import CliRunner

from finetune import families
from finetune import tensors as weights
from finetune.adapters.change import AdapterState, live_name
from finetune.adapters.lora import Lora
from finetune.cli import files
from finetune.errors import BaseError, FinetuneError, RunError, VerifyError
from finetune.families.base import components
from finetune.families.sd import StableDiffusion
from finetune.files import layouts, metadata
from finetune.files.metadata import About
from finetune.proof.export import base_sites, convert, export, inspect, verify

torch.set_num_threads(1)

ABOUT = About(
    family="sd", line="Stable Diffusion 1.x", base_version="sd_v1", architecture="stable-diffusion-v1",
    prediction="epsilon", resolution=64, base="org/tiny", base_fingerprint="ab" * 32, trigger="sks",
    title="A mug", license="cc0-1.0", description="One mug",
    recipe='base = "pocket"\n[data]\npath = "example:product"\n',
    steps=10, dataset_fingerprint="cd" * 32, dataset_images=6, dataset_license="CC0",
)  # fmt: skip
NAME = "mug"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_base(tmp_path_factory.mktemp("base") / "sd15", "sd15"))


@pytest.fixture(scope="module")
def places(base: str) -> dict[str, tuple[int, ...]]:
    return base_sites(base)


@pytest.fixture(scope="module")
def modules(places: dict[str, tuple[int, ...]]) -> AdapterState:
    """Both components, mixed ranks, alpha != rank, a convolution."""
    wanted = r"unet\.(mid_block.*(to_[qkv]|to_out\.0|resnets\.0\.conv1)|down_blocks\.1.*2\.to_k)|text.*[qv]_proj"
    names = [n for n in places if re.fullmatch(wanted, n)]
    return {n: random_lora(places[n], (2, 4)[i % 2], (0.5, 0.25)[i % 2], i) for i, n in enumerate(names)}


@pytest.fixture
def run(tmp_path: Path, base: str, modules: AdapterState) -> Path:
    """A run folder as training leaves it."""
    folder = tmp_path / "run"
    export(modules, folder / "adapter", NAME, ("universal",), "float32", ABOUT)
    (folder / "recipe.toml").write_text(f'base = "{base}"\n[data]\npath = "example:product"\n')
    return folder


@pytest.fixture
def file(run: Path) -> Path:
    return run / "adapter" / f"{NAME}.safetensors"


def cli(*arguments: object) -> tuple[int, str]:
    """(exit code, standard output) of the command line."""
    app = typer.Typer()
    files.register(app)
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, FinetuneError):
        return result.exception.exit_code, result.stdout
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def header_metadata(file: Path) -> dict[str, str]:
    return weights.read_header(file).metadata


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
        assert where.startswith("tokenizer") or not metadata._LOCAL.search(text), where


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


# -- verify -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["universal", "diffusers"])
def test_our_files_verify(tmp_path: Path, base: str, modules: AdapterState, dtype: str, layout: str) -> None:
    done = export(modules, tmp_path, NAME, (layout,), dtype, ABOUT)
    report = verify(getattr(done, layout), base, modules)
    assert (report.ok, report.problems, report.findings, report.layout) == (True, (), (), layout)
    assert report.hit == report.expected == len(modules) and not report.unused and not report.missed
    assert report.stock is not None and report.stock < 1e-5
    assert report.live is not None and report.live < {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}[dtype]
    assert {e.component for e in report.effects} == {"unet", "text_encoder"}
    assert all(e.weight > 0 and e.output > 0 for e in report.effects)


def test_the_effect_is_the_share_by_which_the_weights_change(file: Path, base: str, modules: AdapterState) -> None:
    family = families.load(base)
    effect = next(e for e in verify(file, base).effects if e.component == "unet")
    names = [n for n in modules if n.startswith("unet.")]
    moved = sum(float(dense(modules)[n].square().sum()) for n in names)
    whole = sum(float(components(family)["unet"].get_submodule(n[5:]).weight.double().square().sum()) for n in names)
    assert effect.weight == pytest.approx((moved / whole) ** 0.5, rel=1e-5)


def test_the_master_verifies_too(run: Path, base: str, modules: AdapterState) -> None:
    report = verify(run / "adapter" / "peft", base, modules)
    assert report.ok and report.layout == "peft" and report.stock is None


def test_an_adapter_that_changes_nothing_fails(tmp_path: Path, base: str, modules: AdapterState) -> None:
    dead = {n: m._replace(up=torch.zeros_like(m.up)) if n[0] == "t" else m for n, m in modules.items()}
    done = export(dead, tmp_path, NAME, ("universal",), "float32", ABOUT)
    report = verify(done.peft.parent / f"{NAME}.safetensors", base)
    assert not report.ok and report.problems == ("text_encoder: the adapter changes nothing",)


def drop(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    gone = next(k for k in sorted(tensors) if k.endswith("lora_up.weight"))
    return {k: t for k, t in tensors.items() if k != gone}


def drop_alpha(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    gone = next(k for k in sorted(tensors) if k.endswith(".alpha"))
    return {k: t for k, t in tensors.items() if k != gone}


def drop_module(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    gone = next(k for k in sorted(tensors) if "mid_block" in k).partition(".")[0]
    return {k: t for k, t in tensors.items() if not k.startswith(f"{gone}.")}


def rename(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {k.replace(old, new): t for k, t in tensors.items()}


def strip_alphas(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: t for k, t in tensors.items() if not k.endswith(".alpha")}


def swap(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    a, b = [k for k in sorted(tensors) if "mid_block" in k and k.endswith("attn1_to_q.lora_down.weight")] * 1 + [
        k for k in sorted(tensors) if "mid_block" in k and k.endswith("attn1_to_k.lora_down.weight")
    ]
    return tensors | {a: tensors[b], b: tensors[a]}


def swap_up_and_down(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    a = next(k for k in sorted(tensors) if k.endswith("lora_down.weight"))
    b = a.replace("down", "up")
    return tensors | {a: tensors[b], b: tensors[a]}


def scale(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    key = next(k for k in sorted(tensors) if k.endswith("lora_up.weight") and "mid_block" in k)
    return tensors | {key: tensors[key] * 1.01}


def poison(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    key = next(k for k in sorted(tensors) if k.endswith("lora_up.weight"))
    return tensors | {key: torch.full_like(tensors[key], float("nan"))}


MUTATIONS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "drop a key": drop,
    "drop an alpha": drop_alpha,
    "drop a module": drop_module,
    "rename the unet prefix": rename("lora_unet_", "lora_net_"),
    "rename the text encoder prefix": rename("lora_te_", "lora_te1_"),
    "rename a module": rename("attn1_to_q", "attn1_to_x"),
    "strip every alpha": strip_alphas,
    "swap two tensors": swap,
    "swap up and down": swap_up_and_down,
    "one tensor x 1.01": scale,
    "not a number": poison,
}
UNDETECTABLE_ALONE = {"drop a module", "swap two tensors", "one tensor x 1.01"}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutated_file_exits_5(file: Path, base: str, mutation: str) -> None:
    save_file(MUTATIONS[mutation](load_file(file)), file, header_metadata(file))
    code, output = cli("verify", file, "--base", base, "--json")
    report = json.loads(output)
    assert code == 5 and not report["ok"] and report["problems"]


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutated_file_without_metadata_exits_5_by_itself_or_against_its_run(
    file: Path, run: Path, base: str, mutation: str
) -> None:
    save_file(MUTATIONS[mutation](load_file(file)), file)
    compared = ("--run", run) if mutation in UNDETECTABLE_ALONE else ()
    assert cli("verify", file, "--base", base, *compared)[0] == 5


def test_a_flipped_byte_exits_5_and_a_truncated_file_2(file: Path, base: str) -> None:
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)
    assert cli("verify", file, "--base", base)[0] == 5
    file.write_bytes(content[:-9])
    assert cli("verify", file, "--base", base)[0] == 2
    file.write_bytes(content[:40])
    assert cli("verify", file, "--base", base)[0] == 2


def test_verify_says_what_it_found_on_one_screen(file: Path, base: str) -> None:
    code, output = cli("verify", file, "--base", base)
    assert code == 0 and "verified" in output and "text_encoder" in output and len(output.splitlines()) < 24


def test_the_base_defaults_to_the_runs(file: Path, run: Path) -> None:
    assert cli("verify", file)[0] == 0
    assert cli("verify", file, "--run", run)[0] == 0


def test_a_strangers_file_of_many_alphas_is_read_right_and_its_failing_in_diffusers_is_told(
    tmp_path: Path, base: str, modules: AdapterState, places: dict[str, tuple[int, ...]]
) -> None:
    stranger = tmp_path / "theirs.safetensors"
    save_file(kohya_file(modules), stranger, {"ss_base_model_version": "sd_v1"})
    read = layouts.read_adapter(stranger, places)
    assert read.layout == "kohya" and not read.problems
    for name, change in dense(modules).items():
        found = read.modules[name]
        torch.testing.assert_close(
            found.scale * found.up.double().flatten(1) @ found.down.double().flatten(1), change.flatten(1)
        )
    report = verify(stranger, base)
    assert report.ok and any("stock diffusers" in finding for finding in report.findings)

    code, _ = cli("export", "--from", stranger, "--base", base, "--out", tmp_path / "ours.safetensors")
    assert code == 0
    ours = verify(tmp_path / "ours.safetensors", base, modules)
    assert ours.ok and ours.layout == "universal" and not ours.findings


@pytest.mark.parametrize("said", ["sdxl_base_v1-0", "sd_v2_v", "flux1"])
def test_an_adapter_for_another_base_is_said_in_those_words(
    tmp_path: Path, base: str, modules: AdapterState, said: str
) -> None:
    save_file(kohya_file(modules), tmp_path / "a.safetensors", {"ss_base_model_version": said})
    report = verify(tmp_path / "a.safetensors", base)
    assert not report.ok and "made for" in report.problems[0] and said in report.problems[0]


def test_an_adapter_of_other_shapes_is_for_another_base(tmp_path: Path, base: str) -> None:
    other = base_sites(str(tiny_base(tmp_path / "sd21", "sd21")))
    names = [n for n in other if "attn2.to_k" in n]
    save_file(kohya_file({n: random_lora(other[n], 2, 1.0, 0) for n in names}), tmp_path / "a.safetensors")
    report = verify(tmp_path / "a.safetensors", base)
    assert not report.ok and any("made for another base" in problem for problem in report.problems)


def test_an_sdxl_or_flux_file_is_known_by_its_keys(tmp_path: Path, base: str) -> None:
    for key, said in (("lora_te2_x", "Stable Diffusion XL"), ("transformer.x.to_q", "transformer")):
        down, up = ("lora_down", "lora_up") if key.startswith("lora_") else ("lora_A", "lora_B")
        save_file(
            {f"{key}.{down}.weight": torch.ones(2, 4), f"{key}.{up}.weight": torch.ones(4, 2)},
            tmp_path / "a.safetensors",
        )
        report = verify(tmp_path / "a.safetensors", base)
        assert not report.ok and "made for" in report.problems[0] and said in report.problems[0]


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
