"""The pocket base and the pocket eyes, from nothing but the font: `python data/build_pocket.py`.

Each part is made once and kept under --work; the last and longest, the training of UNet and text encoder by
`finetune train`, is resumed where it was interrupted. At the end both models are written under --out.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
UNET = {
    "sample_size": 16, "in_channels": 4, "out_channels": 4, "block_out_channels": (64, 128, 192), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 128, "attention_head_dim": 4,
}  # fmt: skip
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False, "steps_offset": 1,
}  # fmt: skip


class Leg(NamedTuple):
    name: str
    seed: str
    pictures: int
    twos: float
    """share of the others with two objects"""
    flat: float
    """share of pictures in a flat style"""
    steps: int


LEGS = (
    Leg("", "train", 40000, 0.15, 0.0, 8000),
    Leg("-two", "two", 30000, 0.6, 0.0, 2000),
    Leg("-flat", "flat", 40000, 0.5, 0.75, 7000),
)
"""of the last training: the objects; two of them at a time, which are small and learnt late; drawn flat in any colours,
so that a brand's style is one of many"""


def main(
    work: Annotated[Path, typer.Option(help="where parts are kept")] = Path("build/pocket"),
    out: Annotated[Path, typer.Option(help="where pocket/ and eyes/ are written")] = HERE,
    px: Annotated[int, typer.Option(help="64 or 128: the side of a picture")] = 64,
    ranks: Annotated[int, typer.Option(help="1, 2 or 4 processes that train: on a CPU of two cores, 2 are faster")] = (
        1 if torch.cuda.is_available() else 2
    ),
) -> None:
    script(work / "vae", "train_vae.py", "--px", str(px))
    script(work / "clip", "train_clip.py", "--px", str(px))
    if not (work / "blank").exists():
        blank(work / "vae", work / "clip").save_pretrained(work / ".blank.part")
        (work / ".blank.part").rename(work / "blank")
    base = work / "blank"
    for leg in LEGS:
        pictures, run = work / f"pictures{leg.name}", work / f"run{leg.name}"
        shares = ("--twos", str(leg.twos), "--flat", str(leg.flat))
        drawn = ("--px", str(px), "--seed", leg.seed, "--count", str(leg.pictures), *shares)
        script(pictures, "render_pictures.py", *drawn)
        sets = [f"base={base}", f"data.path={pictures}", f"data.cache={work / 'cache'}", f"train.steps={leg.steps}"]
        train(run, ranks, [*sets, f"train.accumulate={4 // ranks}"])
        base = run / "adapter" / "pocket"
    pack(base, work / "clip", out)


def train(run: Path, ranks: int, sets: list[str]) -> None:
    """`finetune train`, unless it is done; from where it was interrupted."""
    told = run / "run.json"
    if told.exists() and json.loads(told.read_text())["outcome"] == "done":
        return
    resume = ["--resume"] if (run / "checkpoints").exists() else []
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "-m", "finetune"]
    options = [word for one in sets for word in ("--set", one)]
    subprocess.run([*launch, "train", "pocket-base", "--out", str(run), *resume, *options], check=True)


def script(made: Path, name: str, *options: str) -> None:
    """Run a script beside this one that makes a folder, unless it did; what is made is whole or absent."""
    if made.exists():
        return
    beside = made.with_name(f".{made.name}.part")
    subprocess.run([sys.executable, HERE / name, beside, *options], check=True)
    beside.rename(made)


def blank(vae: Path, clip: Path) -> Any:
    """The pipeline before its training: a UNet that knows nothing, a text encoder that reads like the CLIP's."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    text = CLIPTextModel.from_pretrained(clip)
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(vae), text_encoder=text, tokenizer=CLIPTokenizer.from_pretrained(clip),
        unet=UNet2DConditionModel(**UNET), scheduler=DDIMScheduler(**SCHEDULER), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def pack(trained: Path, clip: Path, out: Path) -> None:
    """Both models in fp16; beside the base's tokenizer.json the two files that older readers want."""
    for source, target in ((trained, out / "pocket"), (clip, out / "eyes")):
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".safetensors":
                save_file({name: t.half() for name, t in load_file(file).items()}, place, {"format": "pt"})
            else:
                shutil.copyfile(file, place)
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(clip / name, out / "pocket" / "tokenizer" / name)
    for config in (out / "eyes" / "config.json", out / "pocket" / "text_encoder" / "config.json"):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float16"}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
