"""`sample`: generate pictures, with adapters or without."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.sampling.request import STEPS, Precision


def register(app: typer.Typer) -> None:
    app.command()(sample)


def sample(
    base: Annotated[str, typer.Option(help="`pocket`, a folder, a .safetensors checkpoint or a hub id.")],
    out: Annotated[Path, typer.Option("--out", help="A folder for the pictures.")],
    prompt: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A text file, one prompt a line.")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="FILE, or FILE:weight. May be repeated.")] = None,
    negative: Annotated[str, typer.Option(help="What the picture should not show.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of the first picture; each further one adds 1.")] = 0,
    steps: Annotated[int, typer.Option(min=1)] = STEPS,
    guidance: Annotated[float | None, typer.Option(min=0, help="0 or 1: none. Default: the base's usual.")] = None,
    scheduler: Annotated[str, typer.Option(help="ddim, dpm++, euler, ...; default: the base's own.")] = "",
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in px; default: the base's own.")] = "",
    count: Annotated[int, typer.Option(min=1, help="Pictures a prompt.")] = 1,
    merged: Annotated[
        bool, typer.Option("--merged", help="Merge the adapters into the weights first, in float32.")
    ] = False,
    precision: Annotated[
        Precision, typer.Option(help="Of the arithmetic. auto: bf16 or fp16 on a GPU, fp32 on a CPU.")
    ] = "auto",
    base_bits: Annotated[
        int | None, typer.Option(help="4: the denoiser (nf4), in down to a quarter of the memory.")
    ] = None,
    text_encoder_bits: Annotated[
        int | None, typer.Option(help="8 or 4, of a large text encoder (T5, a language model).")
    ] = None,
    no_safety_checker: Annotated[bool, typer.Option("--no-safety-checker", help="Noted in each picture.")] = False,
) -> None:
    """Make pictures, with adapters or without."""
    from finetune.cli import sampling_view
    from finetune.sampling.request import AdapterWeight, SampleSet, SessionOptions

    named = [*(prompt or ()), *(sampling_view.lines(prompts) if prompts else ())]
    wanted = SampleSet(named, negative, seed, count, steps, guidance, sampling_view.size(size))
    options = SessionOptions(precision, base_bits, text_encoder_bits, scheduler, not no_safety_checker, merged)
    sampling_view.sample(base, wanted, out, [AdapterWeight.of(text) for text in adapter or ()], options)
