"""What adapter files in tests say of themselves, the commands that read them, and a file with a key too few."""

from pathlib import Path

import typer
from torch import Tensor
from typer.testing import CliRunner

from finetune import tensors as weights
from finetune.cli import files
from finetune.errors import FinetuneError
from finetune.files.metadata import About

ABOUT = About(
    family="sd", line="Stable Diffusion 1.x", base_version="sd_v1", architecture="stable-diffusion-v1",
    prediction="epsilon", resolution=64, base="org/tiny", base_fingerprint="ab" * 32, trigger="sks",
    title="A mug", license="cc0-1.0", description="One mug",
    recipe='base = "pocket"\n[data]\npath = "example:product"\n',
    steps=10, dataset_fingerprint="cd" * 32, dataset_images=6, dataset_license="CC0",
)  # fmt: skip
NAME = "mug"


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


def drop(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    gone = next(k for k in sorted(tensors) if k.endswith("lora_up.weight"))
    return {k: t for k, t in tensors.items() if k != gone}
