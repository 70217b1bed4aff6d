"""The sample command: pictures with their recipe inside and a sheet, and what is refused before a picture is made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.adapters import small_adapter
from support.command import sampled

from finetune import families
from finetune import tensors as weights
from finetune.adapters.change import target_shapes
from finetune.adapters.lora import Lora
from finetune.files import layouts
from finetune.sampling import grid
from finetune.sampling.session import Session

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),  # two adapters are meant
]


def facts(path: Path) -> dict[str, str]:
    with Image.open(path) as image:
        return dict(image.text)


def test_the_command_makes_pictures_with_their_recipe_and_a_sheet(tiny, files, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes("\ufeffa red cup\r\n\r\n  a blue cup  \r\n".encode())
    code, said = sampled(
        capsys, "--base", tiny, "--out", tmp_path / "out", "--prompts", prompts, "--prompt", "first",
        "--adapter", f"{files[0]}:0.5", "--adapter", files[1], "--negative", "blurry", "--seed", 7, "--count", 2,
        "--steps", 1, "--guidance", 2, "--scheduler", "euler", "--size", "64x72", "--merged",
    )  # fmt: skip
    assert code == 0 and "6 pictures in" in said and "sheet.png" in said
    names = [f"{n:02d}-{seed}.png" for n in range(3) for seed in (7, 8)]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [*names, "sheet.png"]
    told = facts(tmp_path / "out" / "02-8.png")
    hashes = [short_hash(f) for f in files]
    expected = {
        "prompt": "a blue cup", "seed": "8", "negative": "blurry", "steps": "1", "guidance": "2.0", "width": "64",
        "height": "72", "base": "sd15", "scheduler": "EulerDiscreteScheduler", "merged": "yes",
        "safety checker": "the base has none",
        "adapters": f"1.safetensors:0.5 sha256 {hashes[0]}, 2.safetensors:1 sha256 {hashes[1]}",
    }  # fmt: skip
    assert {k: told[k] for k in expected} == expected
    assert str(tmp_path) not in str(told)
    assert [facts(tmp_path / "out" / n)["prompt"] for n in names[::2]] == ["first", "a red cup", "a blue cup"]
    with Image.open(tmp_path / "out" / "02-8.png") as image:
        assert image.size == (64, 72)
    with Image.open(tmp_path / "out" / "sheet.png") as image:
        assert image.width > 3 * grid.SHOWN_PX and image.height > 2 * grid.SHOWN_PX


def short_hash(file: Path) -> str:
    import hashlib

    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def test_a_peft_directory_is_an_adapter_too(tiny, files, tmp_path, capsys):
    layouts.write_peft(small_adapter(1), tmp_path / "peft", {})
    code, said = sampled(capsys, "--base", tiny, "--out", tmp_path / "out", "--prompt", "a cup", "--steps", 1,
                         "--size", "64x64", "--adapter", f"{tmp_path / 'peft'}:0.5")  # fmt: skip
    assert code == 0, said
    assert facts(tmp_path / "out" / "00-0.png")["adapters"].startswith("peft:0.5 sha256 ")


def test_the_bases_safety_checker_stays_on_unless_it_is_switched_off_and_noted(safe, tmp_path, capsys):
    order = ("--base", safe, "--prompt", "a cup", "--steps", 1, "--size", "64x64")
    code, said = sampled(capsys, *order, "--out", tmp_path / "on")
    assert code == 0 and "safety checker blanked 00-0.png" in said
    told = facts(tmp_path / "on" / "00-0.png")
    assert told["safety checker"] == "on" and told["blanked"] == "yes"
    assert not np.asarray(Image.open(tmp_path / "on" / "00-0.png")).any(), "a flagged picture is black"
    code, said = sampled(capsys, *order, "--out", tmp_path / "off", "--no-safety-checker")
    assert code == 0 and "blanked" not in said
    told = facts(tmp_path / "off" / "00-0.png")
    assert told["safety checker"] == "switched off" and "switched off" in told["parameters"]
    assert np.asarray(Image.open(tmp_path / "off" / "00-0.png")).any()
    assert facts(tmp_path / "off" / "sheet.png")["safety checker"] == "switched off"


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("--size", "64", "WIDTHxHEIGHT"),
        ("--size", "ax64", "WIDTHxHEIGHT"),
        ("--size", "64x64x64", "WIDTHxHEIGHT"),
        ("--size", "64x60", "multiples of 8"),
        ("--size", "8x64", "at least"),
        ("--size", "-64x64", "at least"),
        ("--scheduler", "eular", "one of ddim, ddpm"),
        ("--text-encoder-bits", "8", "has no large text encoder"),
        ("--adapter", "nothing.safetensors:0.5", "no adapter file nothing.safetensors"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_a_picture_is_made(option, value, words, tiny, tmp_path, capsys):
    code, said = sampled(capsys, "--base", tiny, "--prompt", "a cup", "--out", tmp_path / "out", option, value)
    assert code == 2 and words in said and "try: " in said, said
    assert not (tmp_path / "out").exists()


def test_a_large_base_is_sampled_in_few_bits_and_its_text_encoder_is_let_go_first(flux, tmp_path, capsys, monkeypatch):
    held = []
    generate = Session.generate_together

    def watched(session, requests):
        parts = session.family.parts
        kinds = {type(m).__name__ for m in parts["transformer"].modules()}
        held.append((set(parts.loaded()), "Linear4bit" in kinds, parts["transformer"].dtype))
        return generate(session, requests)

    monkeypatch.setattr(Session, "generate_together", watched)
    order = ("--base", flux, "--prompt", "a cup", "--steps", 1, "--size", "64x64", "--seed", 3)
    code, said = sampled(capsys, *order, "--out", tmp_path / "few", "--precision", "bf16", "--base-bits", 4,
                         "--text-encoder-bits", 8)  # fmt: skip
    assert code == 0, said
    assert held == [({"transformer", "vae"}, True, torch.bfloat16)]
    assert facts(tmp_path / "few" / "00-3.png")["precision"] == "bf16, base in 4 bits"
    assert sampled(capsys, *order, "--out", tmp_path / "whole")[0] == 0
    assert held[1][1:] == (False, torch.float32) and facts(tmp_path / "whole" / "00-3.png")["precision"] == "fp32"
    few, whole = (np.asarray(Image.open(tmp_path / n / "00-3.png"), float) for n in ("few", "whole"))
    assert np.abs(few - whole).mean() > 0


def test_a_large_base_wears_an_adapter_in_few_bits_and_merged_in_bf16(flux, tmp_path, capsys):
    places = target_shapes({"transformer": families.load(str(flux)).parts["transformer"]})
    generator = torch.Generator().manual_seed(0)
    changes = {
        name: Lora(torch.randn(2, shape[1], generator=generator), torch.randn(shape[0], 2, generator=generator), 0.1)
        for name, shape in places.items() if name.endswith(("to_q", "to_v"))
    }  # fmt: skip
    weights.write_tensors(layouts.universal(changes, torch.float32, "flux"), tmp_path / "a.safetensors", {})
    order = ("--base", flux, "--prompt", "a cup", "--steps", 1, "--size", "64x64", "--precision", "bf16")
    wearing = ("--adapter", tmp_path / "a.safetensors")
    drawn = {}
    for name, more in {
        "bare": (), "live": wearing, "merged": (*wearing, "--merged"), "few": ("--base-bits", 4),
        "few live": (*wearing, "--base-bits", 4),
    }.items():  # fmt: skip
        code, said = sampled(capsys, *order, "--out", tmp_path / name, *more)
        assert code == 0, said
        drawn[name] = np.asarray(Image.open(tmp_path / name / "00-0.png"), float)

    def off(one, other):
        return np.abs(drawn[one] - drawn[other]).mean()

    change = off("live", "bare")
    assert change > 1 and off("merged", "live") < 0.2 * change
    assert 0.5 * change < off("few live", "few") < 2 * change


def test_precision_and_bits_that_cannot_be_are_refused(flux, tiny, files, tmp_path, capsys, monkeypatch):
    order = ("--prompt", "a cup", "--out", tmp_path / "out", "--base")
    for more, words in (
        ((flux, "--base-bits", 4, "--merged"), "4-bit weights"),
        ((flux, "--text-encoder-bits", 5), "4 or 8 bits"),
        ((flux, "--base-bits", 8), "--base-bits 8"),
        ((tiny, "--precision", "fp16"), "--precision = fp16 needs a CUDA device"),
    ):
        code, said = sampled(capsys, *order, *more)
        assert code == 2 and words in said, said
    monkeypatch.setattr("finetune.families.find_spec", lambda _: None)
    code, said = sampled(capsys, *order, flux, "--base-bits", 4)
    assert code == 2 and "need bitsandbytes" in said and "pip install" in said
    assert not (tmp_path / "out").exists()


def test_a_merged_base_is_merged_in_float32_and_painted_in_the_precision(tiny, files, tmp_path, capsys, monkeypatch):
    seen = []
    for name in ("load_adapters", "generate_together"):
        monkeypatch.setattr(Session, name, noting(getattr(Session, name), seen))
    code, said = sampled(capsys, "--base", tiny, "--prompt", "a cup", "--steps", 1, "--size", "64x64", "--merged",
                         "--adapter", files[0], "--out", tmp_path / "out", "--precision", "bf16")  # fmt: skip
    assert code == 0, said
    assert seen == [torch.float32, torch.bfloat16]


def noting(method, seen):
    def noted(session, *arguments):
        seen.append(session.family.parts["unet"].dtype)
        return method(session, *arguments)

    return noted


def test_an_output_that_cannot_be_written_is_said(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    code, said = sampled(capsys, "--base", tiny, "--prompt", "a cup", "--out", tmp_path / "file", "--steps", 1,
                         "--size", "64x64")  # fmt: skip
    assert code == 2 and "cannot write" in said and (tmp_path / "file").read_text() == "mine"


def test_the_command_generates_its_set_in_batches(tiny, tmp_path, capsys, batches):
    order = ("--base", tiny, "--steps", 1, "--size", "64x64", "--count", 2, "--out", tmp_path / "out")
    code, said = sampled(capsys, *order, "--prompt", "a cup", "--prompt", "a jar")
    assert code == 0, said
    assert [[(r.prompt, r.seed) for r in batch] for batch in batches] == [
        [("a cup", 0), ("a jar", 0), ("a cup", 1), ("a jar", 1)]
    ]
