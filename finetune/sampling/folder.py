"""A set of pictures written into a folder, each with its metadata, and a grid of all of them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from finetune import families, reading, writing
from finetune import resources as shipped
from finetune.data.text.caption_files import first_three
from finetune.errors import InputError, RunError
from finetune.events import Note, Warned
from finetune.sampling.grid import grid
from finetune.sampling.png import write_png
from finetune.sampling.request import STEPS, USUAL, AdapterWeight, SampleRequest, SampleSet, SessionOptions
from finetune.sampling.session import Session, check_options
from finetune.sampling.words import AdapterInUse, adapters_in_use, stacked, word_notices, written_out
from finetune.shortage import GENERATING, out_of_memory

GRID = "sheet.png"
_BYTES_PX = 6
"""of the disk, at most: each picture by itself and once in the sheet"""


class Written(NamedTuple):
    path: Path
    blocked: bool
    """The base's safety checker blanked it."""


def sample(
    base: str, wanted: SampleSet, out: Path, adapters: Sequence[AdapterWeight] = (),
    options: SessionOptions = USUAL,
) -> Iterator[Note | Warned | Written]:  # fmt: skip
    """Say what the pictures are made with, then generate every picture of the set as PROMPT-SEED.png, then the sheet
    of all of them.

    Raises, before anything is generated:
        InputError: what was asked for does not fit the base or this machine; a prompt cannot be read.
        RunError: `out` cannot be written, or holds pictures of an earlier call, which stay.
        VerifyError: an adapter cannot be read whole for this base.
    """
    used = adapters_in_use(adapters)
    wanted, info = written_out(wanted, used), families.detect(base)
    check_options(base, info, options)
    rows = wanted.requests(info, families.family_class(info.family).few_steps.get(options.scheduler))
    if options.merged and not used:
        raise InputError("`merged`: there is no adapter to merge", "name one: `adapter`, or leave `merged` out")
    _refuse_earlier(out, [*(_name(n, request) for row in rows for n, request in enumerate(row)), GRID])
    writing.try_folder(out, (_name(0, rows[-1][0]),), sum(_BYTES_PX * r.width * r.height for row in rows for r in row))
    yield from (Note(text) for text in [stacked(used)] if text)
    yield from (Warned(text) for text in word_notices(wanted, base, info, used))
    with out_of_memory("while the base is opened", GENERATING):
        session = Session.open(base, [*wanted.prompts, *wanted.negatives], adapters, options, info)
    triggers = ", ".join(f"{adapter.file.name}: {adapter.trigger}" for adapter in used if adapter.trigger)
    facts, shown = {**session.made_with, "triggers": triggers}, {}
    pictures = session.generate_many([request for row in rows for request in row])
    for number, row in enumerate(rows):
        for n, request in enumerate(row):
            with out_of_memory("while pictures are generated", GENERATING):
                picture = next(pictures)
            path = out / _name(n, request)
            _write(picture.image, path, {**request.described(), **facts, "blanked": "yes" if picture.blocked else ""})
            shown[n, wanted.seed + number] = picture.image
            yield Written(path, picture.blocked)
    _write(_sheet(wanted, shown, used, base), out / GRID, {"prompt": " | ".join(wanted.prompts), **facts})
    yield Written(out / GRID, False)


def _sheet(
    wanted: SampleSet, pictures: Mapping[tuple[int, int], Image.Image], used: Sequence[AdapterInUse], base: str
) -> Image.Image:
    """All pictures, each by its prompt's number and its seed: in columns whichever there is more of, prompts or seeds,
    as columns go on in further bands."""
    prompts, seeds = list(enumerate(wanted.prompts)), sorted({seed for _, seed in pictures})
    title = " and ".join(f"{one.file.name} at weight {one.weight:g}" for one in used) or "The base model alone"
    own = [one for one in wanted.options if one.seed is not None or one.steps is not None]
    many = "each prompt with its own seed and steps" if own else f"{wanted.steps or STEPS} denoising steps"
    details = f"base model: {shipped.public_name(base)}; {many}"
    named = {seed: f"picture {n}" if own else f"seed {seed}" for n, seed in enumerate(seeds, 1)}
    if len(prompts) >= len(seeds):
        rows = [(named[seed], [pictures[n, seed] for n, _ in prompts]) for seed in seeds]
        return grid(rows, wanted.prompts, title, details)
    rows = [(prompt, [pictures[n, seed] for seed in seeds]) for n, prompt in prompts]
    return grid(rows, list(named.values()), title, details)


def _name(number: int, request: SampleRequest) -> str:
    return f"{number:02d}-{request.seed}.png"


def _refuse_earlier(out: Path, names: Sequence[str]) -> None:
    """Raises RunError: pictures of these names are there."""
    if there := [name for name in names if os.path.lexists(out / name)]:
        place = out if out.name else reading.real_path(out)
        free = next(p for n in range(2, 10**6) if not reading.exists(p := place.with_name(f"{place.name}-{n}")))
        raise RunError(
            f"{out} holds pictures of an earlier call: {first_three(there)}", f"choose another `out`, such as {free}"
        )


def _write(image: Image.Image, path: Path, facts: Mapping[str, str]) -> None:
    try:
        write_png(image, path, facts)
    except OSError as e:
        raise RunError(f"cannot write {path}: {e.strerror}", "choose another `out`") from e
