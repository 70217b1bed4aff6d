"""A set of pictures written into a folder, each with its metadata, and a grid of all of them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from finetune import families
from finetune.errors import RunError
from finetune.sampling.grid import grid
from finetune.sampling.png import write_png
from finetune.sampling.request import USUAL, AdapterWeight, SampleSet, SessionOptions
from finetune.sampling.session import Session

GRID = "sheet.png"


class Written(NamedTuple):
    path: Path
    blocked: bool
    """The base's safety checker blanked it."""


def sample(
    base: str, wanted: SampleSet, out: Path, adapters: Sequence[AdapterWeight] = (),
    options: SessionOptions = USUAL,
) -> Iterator[Written]:  # fmt: skip
    """Generate every picture of the set as PROMPT-SEED.png, then the grid of all of them, one row for each seed.

    Raises:
        InputError: what was asked for does not fit the base or this machine.
        VerifyError: an adapter cannot be read whole for this base.
    """
    info = families.detect(base)
    rows = wanted.requests(info)
    session = Session.open(base, [*wanted.prompts, wanted.negative], adapters, options, info)
    pictures = session.generate_many([request for row in rows for request in row])
    shown = []
    for row in rows:
        images = []
        for n, request in enumerate(row):
            picture = next(pictures)
            path = out / f"{n:02d}-{request.seed}.png"
            blanked = {"blanked": "yes" if picture.blocked else ""}
            _write(picture.image, path, {**request.described(), **session.made_with, **blanked})
            images.append(picture.image)
            yield Written(path, picture.blocked)
        shown.append((f"seed {row[0].seed}", images))
    _write(grid(shown, wanted.prompts), out / GRID, {"prompt": " | ".join(wanted.prompts), **session.made_with})
    yield Written(out / GRID, False)


def _write(image: Image.Image, path: Path, facts: Mapping[str, str]) -> None:
    try:
        write_png(image, path, facts)
    except OSError as e:
        raise RunError(f"cannot write {path}: {e.strerror}", "choose another `out`") from e
