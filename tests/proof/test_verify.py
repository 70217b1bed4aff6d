"""Proof: what was written is what was trained, and what was damaged, or made for another base, fails."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapter_files import ABOUT, NAME, cli, drop, header_metadata
from support.adapters import dense, random_lora
from support.bases import tiny_base
from support.kohya import kohya_file
from torch import Tensor

from finetune import families
from finetune.adapters.change import AdapterState
from finetune.families.base import components
from finetune.files import layouts
from finetune.proof.export import base_sites, export, verify


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


def test_a_strangers_file_of_many_alphas_is_read_right_and_fails_for_diffusers(
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
    [problem] = report.problems
    assert not report.ok and "stock diffusers" in problem
    assert [name for name, one in report.readers.items() if not one.right] == ["diffusers"]
    others = verify(stranger, base, readers=("kohya", "comfyui"))
    assert others.ok and others.findings == (problem,)

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
