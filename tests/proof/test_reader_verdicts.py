"""Which programs apply a file as it says: one table in the families, from which all that speaks of readers is made."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families.cases import USUAL, Case, small_base
from safetensors.torch import load_file, save_file
from support import TESTS
from support.adapter_files import ABOUT, NAME, cli
from support.adapters import random_lora
from support.kohya import kohya_file
from torch import Tensor

from finetune import families
from finetune.adapters.change import AdapterState
from finetune.choices import ReaderName
from finetune.cli.files import reader_names
from finetune.errors import InputError, RunError, VerifyError
from finetune.families.base import Family
from finetune.families.readers import TITLES, Reader
from finetune.families.sdxl import StableDiffusionXL
from finetune.files import layouts
from finetune.proof import verify
from finetune.proof.card import model_card, readers
from finetune.proof.export import base_sites, convert, export

ROOT = TESTS.parent
ALL: tuple[ReaderName, ...] = tuple(TITLES)
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def renamed(old: str, new: str) -> Change:
    return lambda tensors: {key.replace(old, new): t for key, t in tensors.items()}


def without_alpha(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: t for key, t in tensors.items() if not key.endswith(".alpha")}


def tucker(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    key = next(k for k in sorted(tensors) if k.endswith("conv1.lora_down.weight"))
    rank, width = tensors[key].shape[:2]
    mid = key.replace("lora_down", "lora_mid")
    return tensors | {key: torch.ones(rank, width, 1, 1), mid: torch.ones(rank, rank, 3, 3)}


def dora(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    ups = {k: t for k, t in tensors.items() if k.endswith("lora_up.weight")}
    return tensors | {k.replace("lora_up.weight", "dora_scale"): torch.ones(len(t), 1) for k, t in ups.items()}


def same(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors


UNET = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV, FIRST = "unet.mid_block.resnets.0.conv1", "unet.conv_in"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
SHAPES = {UNET: (8, 8), TEXT: (8, 8), CONV: (8, 8, 3, 3), FIRST: (8, 4, 3, 3)}
TABLE: dict[str, tuple[Change, tuple[str, ...], set[str], set[str]]] = {
    # case: what is done to kohya's file, of which modules, who gets it wrong, who is not meant by it
    "as kohya writes it": (same, (UNET, TEXT), set(), set()),
    "lora_te1_ for the only encoder": (renamed("lora_te_", "lora_te1_"), (UNET, TEXT), {"kohya", "lycoris"}, set()),
    "without text_model_": (renamed("_text_model_", "_"), (UNET, TEXT), {*ALL}, set()),
    "no alpha": (without_alpha, (UNET, TEXT), {"lycoris"}, set()),
    "Tucker": (tucker, (UNET, CONV), {"kohya"}, {"kohya", "diffusers"}),
    "DoRA": (dora, (UNET,), {*ALL} - {"lycoris"}, set()),
    "a module that kohya drops": (same, (UNET, FIRST), {"kohya"}, {"kohya"}),
    "compiled": (renamed("lora_unet_", "lora_unet__orig_mod_"), (UNET,), {*ALL}, set()),
}


def theirs(names: tuple[str, ...], seed: int = 0) -> AdapterState:
    return {name: random_lora(SHAPES[name], 2, 0.5, seed + n) for n, name in enumerate(names)}


@pytest.mark.parametrize("case", TABLE)
def test_what_each_program_makes_of_a_unets_file(case: str, tmp_path: Path) -> None:
    change, names, wrong, not_meant = TABLE[case]
    tensors = {k: t.contiguous() for k, t in change(kohya_file(theirs(names))).items()}
    save_file(tensors, tmp_path / "a.safetensors")
    found = layouts.read_adapter(tmp_path / "a.safetensors", {name: SHAPES[name] for name in names}, "sd")
    assert found.problems == () and found.modules.keys() == set(names)
    assert (set(found.misread), set(found.claims)) == (wrong, set(ALL) - not_meant)


def test_an_sdxl_file_in_diffusers_paths_is_meant_for_those_who_know_them(tmp_path: Path) -> None:
    modules = theirs((UNET,))
    save_file(kohya_file(modules), tmp_path / "a.safetensors")
    found = layouts.read_adapter(tmp_path / "a.safetensors", {UNET: (8, 8)}, "sdxl")
    assert set(found.misread) == {"kohya", "lycoris"} and set(found.claims) == {*ALL} - {"kohya", "lycoris"}
    assert StableDiffusionXL.kohya_name(UNET) in found.misread["kohya"]


def test_dotted_names_of_a_unet_are_meant_for_diffusers_alone(tmp_path: Path) -> None:
    save_file(layouts.diffusers(theirs((UNET, TEXT)), torch.float32), tmp_path / "a.safetensors")
    found = layouts.read_adapter(tmp_path / "a.safetensors", {UNET: (8, 8), TEXT: (8, 8)}, "sd")
    assert found.claims == found.known_to == ("diffusers",) and set(found.misread) == {*ALL} - {"diffusers"}


@pytest.mark.parametrize("name", [name for name in families.FAMILIES if name not in ("sd", "sdxl")])
def test_what_each_program_makes_of_a_transformers_file(name: str, tmp_path: Path) -> None:
    kind = families.family_class(name)
    path = "transformer.layers.0.attention.to_q" if name == "zimage" else "transformer.transformer_blocks.0.attn.to_q"
    one = random_lora((8, 8), 2, 1.0, 0)
    down, up = one.tensors()["down"], one.tensors()["up"]
    plain = {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
    save_file(plain, tmp_path / "a.safetensors")
    found = layouts.read_adapter(tmp_path / "a.safetensors", {path: (8, 8)}, name)
    assert found.claims == ("diffusers", "comfyui") and not {"diffusers", "comfyui"}.intersection(found.misread)
    told = {layouts.DIFFUSERS_CONFIG: json.dumps({"transformer.r": 2, "transformer.lora_alpha": 1})}
    save_file(plain, tmp_path / "b.safetensors", told)
    found = layouts.read_adapter(tmp_path / "b.safetensors", {path: (8, 8)}, name)
    assert "strength would be another" in found.misread["comfyui"]
    save_file({k.removeprefix("transformer."): t for k, t in plain.items()}, tmp_path / "c.safetensors")
    bare = layouts.read_adapter(tmp_path / "c.safetensors", {path: (8, 8)}, name)
    [comfy] = [reader for reader in kind.readers if reader.program == "comfyui"]
    assert ("comfyui" in bare.claims) == ("bare" in comfy.names) and "diffusers" not in bare.claims


def test_the_modules_that_comfyui_passes_over_in_a_klein_file_are_named(tmp_path: Path) -> None:
    path, lost = "transformer.transformer_blocks.0.attn.to_q", "transformer.double_stream_modulation_img.linear"
    modules = {path: random_lora((8, 8), 2, 1.0, 0), lost: random_lora((8, 8), 2, 1.0, 1)}
    save_file(layouts.diffusers(modules, torch.float32), tmp_path / "a.safetensors")
    found = layouts.read_adapter(tmp_path / "a.safetensors", dict.fromkeys(modules, (8, 8)), "flux2")
    assert found.claims == ("diffusers",) and lost in found.misread["comfyui"]


# -- verify --for -----------------------------------------------------------------------------------------------------


def test_severity_follows_who_was_asked_for(tmp_path: Path, base: str, modules: AdapterState) -> None:
    """diffusers reads one alpha for a whole file; kohya knows lora_te_ only."""
    stranger = tmp_path / "many alphas.safetensors"
    save_file(kohya_file(modules), stranger)
    assert cli("verify", stranger, "--base", base)[0] == 5
    for asked, code in (("diffusers", 5), ("kohya", 0), ("kohya,comfyui", 0), ("comfyui,diffusers", 5)):
        found, said = cli("verify", stranger, "--base", base, "--for", asked, "--json")
        told = json.loads(said)["readers"]
        assert found == code, said
        assert {name for name, one in told.items() if one["asked"]} == set(asked.split(","))
        assert (
            not told["diffusers"]["right"] and told["kohya"]["right"] and "stock diffusers" in told["diffusers"]["why"]
        )
    assert cli("verify", stranger, "--base", base, "--for", "kohya", "--for", "diffusers")[0] == 5


def test_a_program_of_no_such_name_or_of_other_families_is_said(base: str, file: Path) -> None:
    assert reader_names(["ComfyUI, kohya", "kohya"]) == ["comfyui", "kohya"]
    with pytest.raises(InputError, match="no program 'photoshop'"):
        reader_names(["comfyui,photoshop"])
    with pytest.raises(InputError, match="no program ''"):
        reader_names([""])


def test_our_own_file_is_right_in_every_program(base: str, file: Path) -> None:
    report = verify.verify(file, base, readers=ALL)
    assert report.ok and all(one.right and one.asked and not one.why for one in report.readers.values())


def test_a_peft_directory_is_meant_for_no_program_but_peft(run: Path, base: str) -> None:
    folder = run / "adapter" / "peft"
    assert verify.verify(folder, base).ok
    report = verify.verify(folder, base, readers=("comfyui",))
    assert not report.ok and "ComfyUI: it reads files" in report.problems[0]


def test_export_for_a_program_that_would_not_read_it_leaves_no_file(tmp_path: Path, run: Path) -> None:
    source = run / "adapter" / "peft"
    convert(source, "universal", tmp_path / "a.safetensors", readers=ALL)
    with pytest.raises(VerifyError, match=r"kohya would not read b\.safetensors"):
        convert(source, "diffusers", tmp_path / "b.safetensors", readers=("diffusers", "kohya"))
    assert not (tmp_path / "b.safetensors").exists()
    with pytest.raises(RunError, match="`readers` are of files"):
        convert(source, "peft", tmp_path / "c", readers=("diffusers",))


@pytest.mark.parametrize("said", ["sd_v1-5", "sd-v1.5", "SD 1.5", "my own base", "sd_v1_5_pruned"])
def test_an_unknown_spelling_is_no_proof_of_another_base(said: str, tmp_path: Path, base: str, file: Path) -> None:
    save_file(load_file(file), tmp_path / "a.safetensors", {"ss_base_model_version": said})
    report = verify.verify(tmp_path / "a.safetensors", base)
    assert report.ok, report.problems


# -- one table --------------------------------------------------------------------------------------------------------


def promised_by(kind: type[Family]) -> dict[str, Reader]:
    """Those that read the universal file."""
    return {reader.program: reader for reader in kind.readers if kind.layout in reader.names}


def test_card_and_pages_promise_what_the_families_table_says() -> None:
    page = (ROOT / "docs" / "bases.md").read_text()
    for name in families.FAMILIES:
        promised = promised_by(families.family_class(name))
        labels = readers(name, ["universal"])
        assert labels == tuple(reader.label for reader in promised.values()) and f"| {', '.join(labels)} |" in page
        card = model_card(NAME, replace(ABOUT, family=name), ["universal"])
        [use] = [line for line in card.splitlines() if "works as it is" in line]
        assert set(re.findall("|".join(TITLES.values()), use)) == {TITLES[one.program] for one in promised.values()}


@pytest.mark.parametrize("case", USUAL, ids=[case.name for case in USUAL])
def test_a_universal_file_is_right_by_rules_in_all_that_are_promised(case: Case, tmp_path: Path) -> None:
    """Of every preset's modules: where a program passes some over, it is not promised for that preset."""
    places = base_sites(str(small_base(case, tmp_path / "base")))
    kind = families.family_class(case.family)
    promised = promised_by(kind)
    modules: AdapterState = {name: random_lora(shape, 1, 1.0, 0) for name, shape in places.items()
                             if not any(name in r.drops for r in promised.values())}  # fmt: skip
    export(
        modules,
        tmp_path / "out",
        NAME,
        ["universal"],
        "float32",
        ABOUT.__class__(**{**vars(ABOUT), "family": case.family}),
    )
    found = layouts.read_adapter(tmp_path / "out" / f"{NAME}.safetensors", places, case.family)
    assert found.problems == () and set(found.claims) == promised.keys()
    assert not promised.keys() & found.misread.keys()
