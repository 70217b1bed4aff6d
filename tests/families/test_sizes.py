"""A configuration is held against its weights before anything is built by it."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import BaseError
from finetune.families import sizes
from finetune.resources import EYES, POCKET
from finetune.tensors import Header, read_header

CONFIGS = sorted((Path(__file__).parent / "configs").glob("*/*/config.json"))
TENSORS = {"transformer": 200, "vae": 100}
"""fewer than the published parts have"""


def header(tensors: int, widest: int = 1 << 16) -> Header:
    return Header({}, {f"blocks.{n}.weight": (widest, 4) for n in range(tensors)}, {}, 0)


@pytest.mark.parametrize("path", CONFIGS, ids=[f"{p.parent.parent.name}-{p.parent.name}" for p in CONFIGS])
def test_published_configurations_are_far_within_the_bounds(path: Path) -> None:
    sizes.check_config(path, [header(TENSORS[path.parent.name])])


@pytest.mark.parametrize("folder", [EYES, *(POCKET / part for part in ("unet", "vae", "text_encoder"))])
def test_those_that_travel_with_the_package_pass(folder: Path) -> None:
    sizes.check_config(folder / "config.json", [read_header(file) for file in folder.glob("*.safetensors")])


@pytest.mark.parametrize(
    "told",
    [
        {"num_layers": 11}, {"n_layers": 6, "n_refiner_layers": 5}, {"text_config": {"num_hidden_layers": 11}},
        {"vision_config": {"depth": 6}, "num_hidden_layers": 5}, {"layers_per_block": 6, "block_out_channels": [8, 8]},
        {"layers_per_block": [1, 10], "down_block_types": ["a", "b"]},
        {"layers_per_block": 1, "transformer_layers_per_block": [1, 20], "down_block_types": ["a", "b"]},
    ],
)  # fmt: skip
def test_there_are_no_more_layers_than_tensors(told: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(told))
    with pytest.raises(BaseError, match=r"config\.json says at least 1\d layers|config\.json says at least 2\d layers"):
        sizes.check_config(file, [header(5), Header({}, {"another": (1,)}, {}, 0)])
    sizes.check_config(file, [header(30)])


@pytest.mark.parametrize(
    "told",
    [{"sample_size": 1 << 21}, {"x": [1, [2, 1e9]]}, {"a": {"b": {"c": -(10**50)}}}, {"x": float("nan")}],
)
def test_no_number_is_beyond_all_bounds(told: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(told))
    with pytest.raises(BaseError, match=r"config\.json"):
        sizes.check_config(file, [header(30)])
    sizes.check_numbers(
        {
            "lambda_min_clipped": -float("inf"),
            "rope_theta": 1e7,
            "transformers_version": "5.0",
            "sample_size": 1024,
            "is_new": True,
        },
        "x",
    )


def test_a_width_is_one_that_some_weight_has(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for told, widest in (({"vocab_size": 50_000}, 49_408), ({"d_model": 8192}, 4096), ({"num_heads": 5000}, 64)):
        file.write_text(json.dumps(told))
        with pytest.raises(BaseError, match="no weight is wider"):
            sizes.check_config(file, [header(30, widest)])
        sizes.check_config(file, [header(30, 50_000)])
    file.write_text(json.dumps({"max_position_embeddings": 262_144}))
    sizes.check_config(file, [header(30)])  # rotary: no weights are of it
    with pytest.raises(BaseError, match="no weight is wider"):
        sizes.check_config(file, [header(30), Header({}, {"position_embedding.weight": (77, 8)}, {}, 0)])
