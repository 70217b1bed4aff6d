"""A tiny base, and a run folder with an adapter of both of its components, as training leaves it."""

import re
from pathlib import Path

import pytest
from support.adapter_files import ABOUT, NAME
from support.adapters import random_lora
from support.bases import tiny_base

from finetune.adapters.change import AdapterState
from finetune.proof.export import base_sites, export


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_base(tmp_path_factory.mktemp("base") / "sd15", "sd15"))


@pytest.fixture(scope="session")
def places(base: str) -> dict[str, tuple[int, ...]]:
    return base_sites(base)


@pytest.fixture(scope="session")
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
    (folder / "run.json").write_text('{"outcome": "done"}')
    (folder / "recipe.toml").write_text(f'base = "{base}"\n[data]\npath = "example:product"\n')
    return folder


@pytest.fixture
def file(run: Path) -> Path:
    return run / "adapter" / f"{NAME}.safetensors"
