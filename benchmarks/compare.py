"""How much faster is `compare` than a fresh `sample` for each picture? Both in one run, on the pocket base.

python benchmarks/compare.py            3 adapters x 3 weights x 4 prompts; exits 1 below 5 times
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

sys.path[:0] = [str(Path(__file__).parent.parent / "tests")]

from support.adapters import pocket_adapter  # noqa: E402

LEAST = 5.0
WEIGHTS = (0.6, 0.8, 1.0)
PROMPTS = ("a star", "a red apple", "a photo of a sks mug", "a sks mug on a teal background")


def main(
    fresh: Annotated[
        int, typer.Option(help="How many fresh calls of `sample` are timed; the mean stands for all.")
    ] = 4,
) -> None:
    """Time both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [folder / f"{n}.safetensors" for n in range(3)]
        for n, file in enumerate(files):
            pocket_adapter(file, n)
        prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
        weights = ",".join(map(str, WEIGHTS))
        whole = seconds("compare", *files, "--weights", weights, *prompts, "--out", folder / "compared")
        cells = (1 + len(files) * len(WEIGHTS)) * len(PROMPTS)
        each = sum(
            seconds("sample", "--base", "pocket", "--adapter", f"{files[n % 3]}:0.8", "--prompt", PROMPTS[n % 4],
                    "--out", folder / f"fresh-{n}") for n in range(fresh)
        ) / fresh  # fmt: skip
    times = each * cells / whole
    typer.echo(f"{cells} pictures: {whole:.1f} s compared, {each:.1f} s for a fresh sample of one: {times:.1f} times")
    if times < LEAST:
        sys.exit(f"missed: {times:.1f}, bar {LEAST:g}")


def seconds(*arguments: object) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "finetune", *map(str, arguments)], check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    typer.run(main)
