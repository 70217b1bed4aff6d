"""`sample`: generate pictures, with adapters or without."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.choices import Precision
from finetune.cli.options import AsJson, Base, Output, Quiet, number
from finetune.sampling.request import STEPS

Steps = Annotated[
    int | None,
    number(
        "sample.steps",
        help="Denoising steps; usually 20 to 50, with lcm and tcd 4 to 8.",
        show_default=f"{STEPS}; with lcm and tcd 8",
    ),
]
Scheduler = Annotated[
    str,
    typer.Option(
        help="Sampling method, such as ddim, dpm++ or euler; lcm or tcd with an adapter for few steps (LCM-LoRA).",
        show_default="the base's own",
    ),
]


def register(app: typer.Typer) -> None:
    app.command()(sample)


def sample(
    base: Base,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What to show, such as 'a {trigger} {class_word} on a beach'. May be repeated."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File with one prompt per line, which may end in its own options: a red mug --negative blurry --size "
            "512x768 --seed 7 --steps 30 --guidance 5, or kohya's --n --w --h --d --s --l. JSON and TOML are read, too."
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="Adapter as FILE or FILE:weight, such as mug.safetensors:0.8 or RUN@500. May be repeated."),
    ] = None,
    trigger: Annotated[
        str | None, typer.Option(help="What {trigger} in a prompt stands for.", show_default="the adapter's own")
    ] = None,
    class_word: Annotated[
        str | None, typer.Option(help="What {class_word} in a prompt stands for.", show_default="the adapter's own")
    ] = None,
    negative: Annotated[str, typer.Option(help="Negative prompt: what the picture should not show.")] = "",
    seed: Annotated[int, number("sample.seed", help="Seed of the first picture, then +1 for each further one.")] = 0,
    steps: Steps = None,
    guidance: Annotated[
        float | None,
        number("sample.guidance", help="How strictly to follow the prompt; 1 turns it off.", show_default="the usual"),
    ] = None,
    scheduler: Scheduler = "",
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in px.", show_default="the base's own")] = "",
    count: Annotated[int, number("count", help="Pictures for each prompt.")] = 1,
    merged: Annotated[
        bool, typer.Option("--merged", help="Merge the adapters into the weights before generating.")
    ] = False,
    precision: Annotated[
        Precision, typer.Option(help="Compute precision. auto: bf16 or fp16 on a GPU, fp32 on a CPU.")
    ] = "auto",
    base_bits: Annotated[
        int | None,
        number("bits", help="4: load the denoiser in 4 bits (about 1/4 of the memory).", show_default="in full"),
    ] = None,
    text_encoder_bits: Annotated[
        int | None,
        number(
            "bits",
            help="4 or 8: load a large text encoder (T5, a language model) in this many bits.",
            show_default="in full",
        ),
    ] = None,
    no_safety_checker: Annotated[
        bool, typer.Option("--no-safety-checker", help="Turn the base's safety checker off (recorded in the PNG).")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Generate pictures, with adapters or without.

    {trigger} and {class_word} in a prompt stand for the words that the adapter was trained with. Each PNG records
    how it was made; sheet.png shows all of them together. Pictures of an earlier call are not overwritten.
    """
    from finetune.cli import sampling_view
    from finetune.sampling.request import AdapterWeight, SampleSet, SessionOptions

    found = sampling_view.prompts_of(prompt or (), prompts)
    wanted = SampleSet(
        [line.prompt.text for line in found.lines], negative, seed, count, steps, guidance, sampling_view.size(size),
        trigger, class_word, [line.prompt.where for line in found.lines], [line.options for line in found.lines],
    )  # fmt: skip
    options = SessionOptions(precision, base_bits, text_encoder_bits, scheduler, not no_safety_checker, merged)
    adapters = [AdapterWeight.of(text) for text in adapter or ()]
    sampling_view.sample(base, wanted, out, adapters, options, Output(as_json, quiet), found.notes)
