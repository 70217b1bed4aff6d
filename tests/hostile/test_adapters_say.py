"""What an adapter file says of itself is read, or refused by name, and in one sentence whatever the number of keys."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families.cases import USUAL, Case, small_base
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.adapters import pocket_adapter, random_lora
from support.hostile import attempt
from torch import Tensor, nn
from torch.testing import assert_close

from finetune.adapters.change import AdapterState
from finetune.adapters.lora import delta
from finetune.errors import BaseError
from finetune.files import kinds, layouts, peft, peft_fields
from finetune.proof.export import base_sites

NAMES = tuple(f"unet.down_blocks.{n}.attentions.0.transformer_blocks.0.attn1.to_q" for n in range(3))
PLACES = dict.fromkeys(NAMES, (8, 8))


@pytest.fixture
def modules() -> AdapterState:
    return {name: random_lora((8, 8), 4, 0.5, n) for n, name in enumerate(NAMES)}


@pytest.fixture
def folder(tmp_path: Path, modules: AdapterState) -> Path:
    """A PEFT directory, of one component."""
    peft.write_peft(modules, tmp_path / "adapter", {})
    return tmp_path / "adapter"


def say(folder: Path, **fields: object) -> Path:
    """The directory, which says this as well."""
    file = folder / "unet" / peft.PEFT_CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


# -- adapter_config.json ----------------------------------------------------------------------------------------------


def test_every_field_of_the_installed_peft_is_judged_once() -> None:
    """A new PEFT that adds a field fails here, until someone has read what it does."""
    tables = (peft_fields.HONOURED, peft_fields.HARMLESS, frozenset(peft_fields.REFUSED), peft_fields.JUDGED)
    known = frozenset().union(*tables)
    assert sum(map(len, tables)) == len(known)
    fields = {field.name: field for field in dataclasses.fields(LoraConfig)}
    assert fields.keys() - known == set()
    variants = {name for name, field in fields.items() if field.metadata.get("is_lora_variant")}
    assert variants - {"use_dora"} <= peft_fields.REFUSED.keys()


def test_what_peft_writes_of_a_plain_lora_is_read_without_a_word(folder: Path) -> None:
    plain = {k: v for k, v in LoraConfig().to_dict().items() if k not in peft_fields.HONOURED}
    told = say(folder, **json.loads(json.dumps(plain, default=str)))
    found = layouts.read_adapter(told, PLACES)
    assert (found.problems, found.notes) == ((), ()) and found.modules.keys() == set(NAMES)


SET = {"alora_invocation_tokens": [1], "layer_replication": [[0, 1]], "modules_to_save": ["conv_in"],
       "target_parameters": ["x"], "trainable_token_indices": [3]}  # fmt: skip


@pytest.mark.parametrize("field", [*peft_fields.REFUSED, "use_something_new", "something_config", "bias"])
def test_a_field_that_changes_the_meaning_is_refused_by_name(folder: Path, field: str) -> None:
    value = "all" if field == "bias" else SET.get(field, {"a": 1} if field.endswith("_config") else True)
    with pytest.raises(BaseError, match=rf"adapter_config\.json: {field} ") as refused:
        layouts.read_adapter(say(folder, **{field: value}), PLACES)
    assert refused.value.hint


@pytest.mark.parametrize("value", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "of tomorrow", 3])
def test_a_start_that_changed_the_base_is_refused_by_name(folder: Path, value: object) -> None:
    with pytest.raises(BaseError, match=r"init_lora_weights = .*base's weights were changed"):
        layouts.read_adapter(say(folder, init_lora_weights=value), PLACES)


def test_a_field_that_only_gives_a_number_is_noted_by_name(folder: Path) -> None:
    found = layouts.read_adapter(say(folder, new_group_size=16, new_thing=None, new_table={}, new_switch=False), PLACES)
    assert found.problems == () and found.modules.keys() == set(NAMES)
    [note] = found.notes
    assert "new_group_size" in note


def test_diffusers_metadata_are_judged_alike(tmp_path: Path, modules: AdapterState) -> None:
    table = {"unet.r": 4, "unet.lora_alpha": 2, "unet.lora_bias": True}
    told = {layouts.DIFFUSERS_CONFIG: json.dumps(table)}
    save_file(layouts.diffusers(modules, torch.float32), tmp_path / "a.safetensors", told)
    with pytest.raises(BaseError, match="lora_adapter_metadata: lora_bias is set"):
        layouts.read_adapter(tmp_path / "a.safetensors", PLACES)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.to_q, self.to_k = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_k(self.to_q(x))  # type: ignore[no-any-return]


def changes_by_peft(folder: Path) -> dict[str, Tensor]:
    """What PEFT makes of a directory, against the base as it was."""
    merged = PeftModel.from_pretrained(Small(), folder).merge_and_unload()
    return {name: module.weight - Small().get_submodule(name).weight for name, module in merged.named_children()}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("start", [True, False, *sorted(peft_fields.STARTS), "pissa", "olora"])
def test_pefts_own_reading_bears_the_table_out(start: bool | str, tmp_path: Path) -> None:
    """Of the starts that are read ours is PEFT's, and of those that are refused it would not be."""
    config = LoraConfig(r=4, lora_alpha=2, init_lora_weights="gaussian", target_modules=["to_q", "to_k"])
    torch.manual_seed(1)
    trained = get_peft_model(Small(), config)
    for name, parameter in trained.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    trained.save_pretrained(tmp_path / "unet")
    file = tmp_path / "unet" / peft.PEFT_CONFIG
    plain = layouts.read_adapter(tmp_path / "unet", {"unet.to_q": (16, 16), "unet.to_k": (16, 16)}, "sd").modules
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": start}))
    theirs = changes_by_peft(tmp_path / "unet")
    same = all(torch.allclose(theirs[n.partition(".")[2]], delta(plain[n]), atol=1e-5) for n in plain)
    try:
        layouts.read_adapter(tmp_path / "unet", {"unet.to_q": (16, 16), "unet.to_k": (16, 16)}, "sd")
        read = True
    except BaseError:
        read = False
    assert len(plain) == 2 and read == same == (start not in ("pissa", "olora"))


# -- keys -------------------------------------------------------------------------------------------------------------

BESIDE = {
    "bundle_emb.my_style.string_to_param.*": "bundled",
    "bundle_emb.my_style.emb_params": "bundled",
    "RAW.w_norm": "norm", "RAW.b_norm": "norm", "double_blocks.0.img_attn.norm.query_norm.scale": "norm",
    "RAW.diff": "whole weight", "RAW.diff_b": "bias", "RAW.lora_B.bias": "bias", "RAW.scalar": "use_scalar",
    "RAW.hada_w1_a": "LoHa", "RAW.lokr_w1": "LoKr", "RAW.oft_blocks": "OFT", "RAW.a1.weight": "GLoRA",
    "RAW.on_input": "IA3", "double_blocks.0.processor.qkv_lora1.down.weight": "XLabs", "RAW.unheard_of": "not a LoRA",
}  # fmt: skip


@pytest.mark.parametrize("key", BESIDE)
def test_what_is_no_lora_is_told_once_for_its_kind(key: str, modules: AdapterState, tmp_path: Path) -> None:
    tensors = {k: t.contiguous() for k, t in layouts.universal(modules, torch.float32, "sd").items()}
    beside = {key.replace("RAW", f"lora_unet_x_{n}").replace(".0.", f".{n}.").replace("my_style", f"style_{n}"):
              torch.ones(2) for n in range(40)}  # fmt: skip
    save_file(tensors | beside, tmp_path / "a.safetensors")
    found = layouts.read_adapter(tmp_path / "a.safetensors", PLACES, "sd")
    assert len(found.problems) == 1 and BESIDE[key] in found.problems[0] and "39 more" in found.problems[0]
    assert set(beside) == set(found.unused) and found.modules.keys() == set(NAMES)


WRAPPED: dict[str, Callable[[str, str], str]] = {
    # path of the module, lora_A or lora_B -> key
    "torch.compile": lambda path, ab: f"unet._orig_mod.{path}.{ab}.weight",
    "torch.compile of each block": lambda path, ab: f"unet.{path.replace('.att', '._orig_mod.att')}.{ab}.weight",
    "DistributedDataParallel": lambda path, ab: f"unet.module.{path}.{ab}.weight",
    "both": lambda path, ab: f"module._orig_mod.unet.{path}.{ab}.weight",
    "PEFT inside a pipeline": lambda path, ab: f"unet.base_model.model.{path}.{ab}.weight",
    "an adapter's name, and alpha": lambda path, ab: f"unet.{path}.{ab}.my_adapter.weight",
    "compiled, in kohya's names": lambda path, ab: "lora_unet__orig_mod_" + path.replace(".", "_")
    + {"lora_A": ".lora_down.weight", "lora_B": ".lora_up.weight"}[ab],
}  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("places", [PLACES, None], ids=["in a base", "alone"])
def test_wrappers_round_a_name_have_one_reading(
    wrapper: str, places: dict[str, tuple[int, ...]] | None, modules: AdapterState, tmp_path: Path
) -> None:
    spell = WRAPPED[wrapper]
    tensors = {}
    for name, one in modules.items():
        path = name.partition(".")[2]
        tensors |= {spell(path, "lora_A"): one.tensors()["down"], spell(path, "lora_B"): one.tensors()["up"]}
        stem = spell(path, "lora_A").partition(".lora_")[0]
        tensors[f"{stem}.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "a.safetensors")
    found = layouts.read_adapter(tmp_path / "a.safetensors", places, "sd")
    assert (found.problems, found.unused) == ((), ())
    if places or "kohya" not in wrapper:  # which only a base's names resolve
        assert found.modules.keys() == set(NAMES)
        for name, one in modules.items():
            assert_close(delta(found.modules[name]), delta(one))


def test_pefts_names_in_memory_have_their_strength_from_the_folder_only(folder: Path, modules: AdapterState) -> None:
    file = folder / "unet" / peft.PEFT_WEIGHTS
    tensors = {k.replace(".weight", ".my_style.weight"): t for k, t in load_file(file).items()}
    save_file(tensors, file)
    found = layouts.read_adapter(folder, PLACES)
    assert found.problems == () and {one.scale for one in found.modules.values()} == {0.5}
    save_file(tensors, folder / "loose.safetensors")
    [problem] = layouts.read_adapter(folder / "loose.safetensors", PLACES).problems
    assert kinds.STRENGTH in problem and "2 more" in problem


def test_two_adapters_in_one_file_are_not_mixed(folder: Path) -> None:
    file = folder / "unet" / peft.PEFT_WEIGHTS
    both = {k.replace(".weight", f".{a}.weight"): t.clone() for k, t in load_file(file).items() for a in ("one", "two")}
    save_file(both, file)
    [problem] = layouts.read_adapter(folder, PLACES).problems
    assert "two adapters" in problem


# -- number formats ---------------------------------------------------------------------------------------------------

FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float32, torch.float64)
Places = tuple[str, dict[str, tuple[int, ...]]]
"""a family, and the shapes of all that its adapters may change"""
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)


@pytest.fixture(scope="module", params=USUAL, ids=[case.name for case in USUAL])
def places(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, tuple[int, ...]]]:
    case: Case = request.param
    path = small_base(case, tmp_path_factory.mktemp(case.variant) / "base")
    return case.family, base_sites(str(path))


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_every_layer_of_every_family_is_read_in_every_number_format(
    dtype: torch.dtype, places: Places, tmp_path: Path
) -> None:
    family, shapes = places
    states = {name: random_lora(shape, 2, 1.0, n) for n, (name, shape) in enumerate(shapes.items())}
    tensors = {}
    for name, one in states.items():
        tensors |= {f"{name}.lora_A.weight": one.tensors()["down"], f"{name}.lora_B.weight": one.tensors()["up"]}
    stored = {key: (8 * t if dtype in INTEGERS else t).to(dtype).contiguous() for key, t in tensors.items()}
    save_file(stored, tmp_path / "a.safetensors")
    found = layouts.read_adapter(tmp_path / "a.safetensors", shapes, family)
    if dtype in INTEGERS:
        assert not found.modules and len(found.problems) == 1 and "holds no weights" in found.problems[0]
        return
    assert (found.problems, found.unused) == ((), ()) and found.modules.keys() == shapes.keys()
    for name, change in found.modules.items():
        assert torch.equal(change.tensors()["down"], stored[f"{name}.lora_A.weight"].float())
        assert torch.equal(change.tensors()["up"], stored[f"{name}.lora_B.weight"].float())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float64], ids=str)
def test_no_command_falls_over_a_number_format(dtype: torch.dtype, place: Path) -> None:
    pocket_adapter(place / "plain.safetensors", 0)
    tensors = {k: t if k.endswith("alpha") else t.to(dtype) for k, t in load_file(place / "plain.safetensors").items()}
    save_file(tensors, place / "odd.safetensors")
    commands = (
        ["inspect", "odd.safetensors"],
        ["verify", "odd.safetensors", "--base", "pocket"],
        ["export", "--from", "odd.safetensors", "--base", "pocket", "--out", "new.safetensors"],
        ["sample", "--base", "pocket", "--adapter", "odd.safetensors", "--prompt", "x", "--steps", "1", "--out", "new"],
    )
    for command in commands:
        found = attempt(command, place)
        assert found.code == 0 and not found.traceback, (command, found.text)


# -- whose next step is whose -----------------------------------------------------------------------------------------


def test_verify_and_export_do_not_send_the_user_in_a_circle(place: Path) -> None:
    tensors = load_file(place / "mug.safetensors")
    peft_names = {}
    for key, tensor in tensors.items():
        stem, _, end = key.partition(".lora_")
        if end:
            peft_names[f"base_model.model.{stem}.lora_{'A' if 'down' in end else 'B'}.x.weight"] = tensor
    spoiled = {
        "an embedding": tensors | {"bundle_emb.x.string_to_param.*": torch.ones(2, 32)},
        "a norm": tensors | {"lora_unet_conv_norm_out.w_norm": torch.ones(32)},
        "no strength": peft_names,
        "not a number": {k: t * float("nan") for k, t in tensors.items()},
    }
    for what, changed in spoiled.items():
        save_file(changed, place / "odd.safetensors")
        verified = attempt(["verify", "odd.safetensors", "--base", "pocket"], place)
        exported = attempt(["export", "--from", "odd.safetensors", "--base", "pocket", "--out", "x.safetensors"], place)
        assert verified.code == exported.code == 5, (what, verified.text, exported.text)
        assert "try:" in verified.err and "finetune export" not in verified.err, (what, verified.err)
        assert "try: finetune verify" not in exported.err.replace("`", ""), (what, exported.err)


def test_a_file_that_holds_nothing_is_refused_in_words(place: Path) -> None:
    save_file({}, place / "nothing.safetensors", {"format": "pt"})
    for command in (
        ["verify", "nothing.safetensors", "--base", "pocket"],
        ["export", "--from", "nothing.safetensors", "--base", "pocket", "--out", "x.safetensors"],
        ["sample", "--base", "pocket", "--adapter", "nothing.safetensors", "--prompt", "x", "--out", "new"],
    ):
        found = attempt(command, place)
        assert found.code == 5 and "try:" in found.err and not found.traceback, (command, found.text)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_convolution_of_one_pixel_may_be_written_as_a_linear_layer_and_the_reverse(kind: str, tmp_path: Path) -> None:
    flat, wide = NAMES[0], NAMES[1]
    shapes = {flat: (8, 6), wide: (8, 6, 1, 1)}
    tensors, ones = {}, {flat: (1, 1), wide: ()}
    for name, tail in ones.items():
        one = random_lora((8, 6), 2, 1.0, 3)
        key = "lora_unet_" + name.partition(".")[2].replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = one.tensors()["down"].reshape(2, 6, *tail)
        tensors[f"{key}.lora_up.weight"] = one.tensors()["up"].reshape(8, 2, *tail)
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
        if kind == "dora":
            tensors[f"{key}.dora_scale"] = torch.arange(1.0, 9.0).reshape(8, 1, *tail)
    save_file(tensors, tmp_path / "a.safetensors")
    found = layouts.read_adapter(tmp_path / "a.safetensors", shapes, "sd")
    assert found.problems == () and {name: one.shape for name, one in found.modules.items()} == shapes
    weight = torch.randn(8, 6)
    changes = [one.delta(weight.reshape(one.shape)).reshape(8, 6) for one in found.modules.values()]
    assert_close(changes[0], changes[1])
    reference = random_lora((8, 6), 2, 1.0, 3)
    assert kind == "dora" or torch.allclose(changes[0], delta(reference))
