"""Families, models and their lines are named in families/ and nowhere else, and known again by those names."""

import ast
import re
from pathlib import Path

import pytest
from families.cases import CASES, Case, small_base

import finetune
from finetune import families
from finetune.families.blocks import block_names
from finetune.families.lines import denoiser_of, line_of, lines_by_key

ROOT = Path(finetune.__file__).parent
NAMES = re.compile(
    r"\b(sd[123x]|sdxl|flux|qwen|z-?image|klein|lumina|flex\b|stable.?diffusion|schnell|"
    r"(joint|double|single|single_transformer|transformer)_blocks)",
    re.IGNORECASE,
)
SAID_TO_USERS = {
    # of the bases and recipes that ship, as examples of what may be written
    "recipe", "cli",
}  # fmt: skip


def strings(tree: ast.Module) -> list[ast.Constant]:
    """All but docstrings and the notes under attributes."""
    notes = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node for node in found if id(node) not in notes]


def test_no_other_file_knows_a_family_or_a_model_by_name() -> None:
    named = []
    for path in ROOT.rglob("*.py"):
        inside = path.relative_to(ROOT)
        if inside.parts[0] == "families" or inside.parts[0].removesuffix(".py") in SAID_TO_USERS:
            continue
        for node in strings(ast.parse(path.read_text(encoding="utf-8"))):
            if NAMES.search(str(node.value)) or node.value in families.FAMILIES:
                named.append(f"{inside}:{node.lineno}: {node.value!r}")
    assert not named
    assert [n.value for n in strings(ast.parse('"""sdxl"""\nx = 1\n"""flux"""\ny = {"sd_v1": "SDXL"}'))] == [
        "sd_v1",
        "SDXL",
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_base_is_of_the_line_that_its_files_will_say(case: Case, tmp_path: Path) -> None:
    facts = families.detect(str(small_base(case, tmp_path / "base")))
    family = families.family_class(facts.family)
    published = family.published(facts)
    for said in (published.base_version, published.architecture, published.architecture.upper()):
        line = line_of(said)
        assert line is not None and line in family.lines and line.title == published.title, said
    assert published.base_version not in published.unlike


def test_the_longest_beginning_counts_and_strangers_are_known_or_none() -> None:
    titles = {"sd3.5-medium": "Stable Diffusion 3.5", "sd3-medium": "Stable Diffusion 3", "flux1": "FLUX.1",
              "Flux.2-klein": "FLUX.2", "flex.1": "Flex", "sdxl_base_v1-0": "Stable Diffusion XL"}  # fmt: skip
    for said, title in titles.items():
        line = line_of("", said)
        assert line is not None and line.title == title
    assert line_of("", "") is line_of("wan2.2") is None
    assert [line.card for said in ("sd_v1", "sd_v2_v", "sdxl", "sd3", "sd3.5", "flux1") if (line := line_of(said))] == [
        "SD1", "SD2", "SDXL", "SD3", "SD3", "Unknown",
    ]  # fmt: skip
    assert {said for said in ("sd_v1", "sd_v2", "sdxl", "sd3") if (line := line_of(said)) and line.v2} == {"sd_v2"}
    assert set(lines_by_key()["lora_unet_double_blocks_"]) == {"FLUX.1", "FLUX.2"}


@pytest.mark.parametrize("case", [case for case in CASES if case.usual], ids=lambda case: case.name)
def test_the_denoiser_of_a_path_is_known_in_its_own_and_in_the_original_codes_names(case: Case, tmp_path: Path) -> None:
    family = families.load(str(small_base(case, tmp_path / "base")))
    denoiser = family.parts[family.denoiser_name]
    for name in block_names(denoiser, family.blocks):
        assert denoiser_of(f"{name}.attn.to_q") == family.denoiser_name
    paths = [
        name for name, _ in denoiser.named_modules() if name.startswith(tuple(block_names(denoiser, family.blocks)))
    ]
    original = {found.name for path in paths if (found := family.original(f"{family.denoiser_name}.{path}"))}
    assert bool(original) == case.fused or case.family == "zimage"
    assert {denoiser_of(path) for path in original} <= {family.denoiser_name}
