"""Numbers beyond reason, on the command line, in recipes and in files: a sentence within seconds, never the memory."""

import io
import json
import re
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.hostile import MEMORY_BYTES, attempt

DIGITS = "9" * 5000
SAMPLE = ["sample", "--base", "pocket", "--prompt", "a cup", "--out", "new"]
OPTIONS: dict[str, tuple[list[str], str, tuple[str, ...]]] = {
    # option: (command, option, values that cannot be)
    "check --resolution": (["check", "photos"], "--resolution", ("1e9", "1000000000", "0", "15", "8193", DIGITS)),
    "check --max-aspect": (["check", "photos"], "--max-aspect", ("nan", "inf", "0.5", "1e308", DIGITS)),
    "caption --timeout": (["caption", "bare", "--vocabulary", "pocket"], "--timeout", ("nan", "inf", "0", "1e9")),
    "plan --gpus": (["plan", "mine.toml"], "--gpus", ("0", "1000000000", DIGITS)),
    "train --gpus": (["train", "mine.toml", "--out", "new"], "--gpus", ("0", "1000000000", DIGITS)),
    "sample --seed": (SAMPLE, "--seed", ("-1", str(2**63), DIGITS)),
    "sample --steps": (SAMPLE, "--steps", ("0", "1001", "1000000000", DIGITS)),
    "sample --guidance": (SAMPLE, "--guidance", ("nan", "inf", "-1", "1e30", DIGITS)),
    "sample --count": (SAMPLE, "--count", ("0", "1000000000", DIGITS)),
    "sample --size": (SAMPLE, "--size", ("100000x100000", "0x0", "-8x8", "8", f"{DIGITS}x8", f"8x{DIGITS[:4000]}")),
    "sample --base-bits": (SAMPLE, "--base-bits", ("5", "0", DIGITS, DIGITS[:4000])),
    "sample --text-encoder-bits": (SAMPLE, "--text-encoder-bits", ("5", DIGITS)),
    "sample --adapter": (SAMPLE, "--adapter", (f"mug.safetensors:{DIGITS}", f"photos@{DIGITS}")),
    "sample --prompts": (["sample", "--base", "pocket", "--out", "new"], "--prompts", ("/dev/zero", "many.txt")),
    "verify --base-bits": (["verify", "mug.safetensors", "--base", "pocket"], "--base-bits", ("5", DIGITS)),
    "compare --steps": (["compare", "photos"], "--steps", ("0", "-1", "1e9", DIGITS, "1" * 11)),
    "compare --weights": (["compare", "mug.safetensors"], "--weights", ("nan", "1e9", "inf", DIGITS)),
    "compare --seed": (["compare", "mug.safetensors", "--prompt", "a cup"], "--seed", ("-1", str(2**63), DIGITS)),
    "compare --count": (["compare", "mug.safetensors", "--prompt", "a cup"], "--count", ("0", "1000000000", DIGITS)),
    "evaluate --count": (["evaluate", "mug.safetensors"], "--count", ("0", "1000000000", DIGITS)),
    "inspect @": (["inspect"], "", (f"photos@{DIGITS}",)),
}


@pytest.mark.parametrize("what", OPTIONS)
def test_a_number_beyond_reason_is_refused_in_a_short_sentence(what: str, place: Path) -> None:
    command, option, values = OPTIONS[what]
    (place / "many.txt").write_text("a cup\n" * 1_000_000)
    wrong = []
    for value in values:
        given = [option, value] if option else [value]
        found = attempt([*command, *given], place)
        worded = "error:" in found.err or "Usage" in found.err
        short = len(found.err.replace(DIGITS, "").replace(DIGITS[:4000], "")) < 1000
        if found.traceback or found.code != 2 or not (worded and short) or found.peak_bytes > MEMORY_BYTES:
            wrong.append((value[:20], found.code, found.text[-400:]))
        assert not (place / "new").exists()
    assert not wrong


KEYS = {
    "train.steps": ("0", "10000001", DIGITS), "train.epochs": ("0", "10000001"), "train.batch": ("1000000000", "4097"),
    "train.accumulate": ("1000000000",), "train.seed": (str(2**63), DIGITS), "train.checkpoint_every": ("1000000000",),
    "data.resolution": ("1000000000", "8193", "nan"), "data.max_aspect": ("1e9", "nan"), "adapter.rank": ("100000",),
    "adapter.alpha": ("1e30", "inf"), "optimizer.learning_rate": ("1e30", "nan"),
    "sample.steps": ("1001",), "sample.guidance": ("1e9", "nan"), "sample.seed": ("-1",),
    "evaluate.count": ("1000000000",), "validation.count": ("1000000000",), "objective.shift": ("1e9",),
    ".".join(["a"] * 5000): ("1",),
}  # fmt: skip


def test_no_key_of_a_recipe_takes_a_number_beyond_reason(place: Path) -> None:
    wrong = []
    for key, values in KEYS.items():
        for value in values:
            found = attempt(["plan", "mine.toml", "--set", f"{key}={value}"], place)
            if found.traceback or found.code != 2 or key not in found.err or len(found.err) > 12_000:
                wrong.append((key[:30], value[:20], found.code, found.text[-300:]))
    assert not wrong


def test_the_largest_numbers_that_are_taken_are_planned(place: Path) -> None:
    sets = ["train.steps=10000000", "train.batch=4096", "train.accumulate=4096", "data.resolution=8192",
            "sample.every=1", "train.seed=9223372036854775807"]  # fmt: skip
    found = attempt(["plan", "mine.toml", "--json", *(word for one in sets for word in ("--set", one))], place)
    assert found.code in (0, 3) and not found.traceback and found.peak_bytes < MEMORY_BYTES, found.text[-500:]
    found = attempt(["check", "photos", "--resolution", "8192", "--max-aspect", "4", "--base", "pocket"], place)
    assert found.code == 0 and not found.traceback and found.peak_bytes < MEMORY_BYTES, found.text[-500:]


def test_epochs_that_are_too_many_steps_are_refused(place: Path) -> None:
    found = attempt(["plan", "mine.toml", "--set", "train.epochs=10000000"], place)
    assert found.code == 2 and "train.epochs" in found.err and "steps" in found.err, found.text


# --- configurations of bases and adapters, headers, pictures ---------------------------------------------------------

CONFIGS: dict[str, tuple[str, dict[str, object]]] = {
    "ten million layers": ("unet", {"layers_per_block": 10_000_000}),
    "ten million layers as a float": ("unet", {"layers_per_block": 1e7}),
    "layers in each of a thousand blocks": ("unet", {"block_out_channels": [64] * 1000}),
    "layers in a list": ("unet", {"transformer_layers_per_block": [10**6] * 3}),
    "channels": ("unet", {"block_out_channels": [64, 128, 10_000_000]}),
    "more channels than any weight": ("unet", {"block_out_channels": [64, 128, 100_000]}),
    "heads": ("unet", {"attention_head_dim": 10**9}),
    "a number of forty digits": ("unet", {"cross_attention_dim": 10**40}),
    "infinity": ("unet", {"sample_size": float("inf")}),
    "layers of a text encoder": ("text_encoder", {"num_hidden_layers": 10_000_000}),
    "vocabulary": ("text_encoder", {"vocab_size": 10**9}),
    "vocabulary that fits no weight": ("text_encoder", {"vocab_size": 900_000}),
    "positions": ("text_encoder", {"max_position_embeddings": 900_000}),
    "layers of the autoencoder": ("vae", {"layers_per_block": 10_000_000}),
    "steps of the schedule": ("scheduler", {"num_train_timesteps": 10**9}),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_base_is_not_built_by_a_configuration_that_its_weights_are_not_of(what: str, place: Path) -> None:
    part, changes = CONFIGS[what]
    (place / "own.toml").write_text('base = "base"\n[data]\npath = "photos"\nallow_uncaptioned = true\n')
    file = place / "base" / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    told = json.loads(file.read_text()) | changes
    file.unlink()
    file.write_text(json.dumps(told))
    found = attempt(["plan", "own.toml"], place)
    assert found.code == 2 and not found.traceback and found.peak_bytes < MEMORY_BYTES, found.text
    assert re.search(rf"{part}.*config", found.err) and re.search(f"{next(iter(changes))}| layers", found.err), (
        found.err
    )


PATTERNS = ["(a+)+$", "(.*)*x", "(.*a){30}x", "(a|aa)+$", ".*.*.*.*.*.*.*.*x"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_of_an_adapter_freezes_nothing(pattern: str, place: Path) -> None:
    config = place / "peft/unet/adapter_config.json"
    told = json.loads(config.read_text())
    for key in ("rank_pattern", "alpha_pattern"):
        config.unlink()
        config.write_text(json.dumps(told | {key: {pattern: 4}}))
        found = attempt(["inspect", "peft"], place)
        assert found.code == 2 and key in found.err and "adapter_config" in found.err, found.text
    name = "unet.mid_block.attentions.0.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
    flat = {"unet.r": 1, "unet.lora_alpha": 1, "unet.target_modules": pattern}
    save_file(
        {f"{name}.lora_A.weight": torch.ones(1, 4), f"{name}.lora_B.weight": torch.ones(4, 1)},
        place / "flat.safetensors", {"lora_adapter_metadata": json.dumps(flat)},
    )  # fmt: skip
    for command in (["inspect", "flat.safetensors"], ["verify", "flat.safetensors", "--base", "pocket"]):
        found = attempt(command, place)
        assert found.code == 2 and "target_modules" in found.err, found.text


def test_a_header_of_very_many_keys_is_refused_before_it_is_read(place: Path) -> None:
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    content = b"{" + b",".join(entry % n for n in range(350_000)) + b"}"
    (place / "many.safetensors").write_bytes(struct.pack("<Q", len(content)) + content)
    for command in (["inspect", "many.safetensors"], ["sample", "--base", "many.safetensors", *SAMPLE[3:]]):
        found = attempt(command, place)
        assert found.code == 2 and "350,000 tensors" in found.err and found.peak_bytes < 500 << 20, found.text


def png(width: int, height: int, colour: int = 2) -> bytes:
    """A PNG of zeros: 8 bits, of colour type 2 (RGB) or 6 (RGBA)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packed, row = zlib.compressobj(1), bytes(1 + width * (3 if colour == 2 else 4))
    rows = b"".join(packed.compress(row) for _ in range(height)) + packed.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def frames(form: str, count: int) -> bytes:
    pictures = [Image.new("RGB", (64, 64), (n % 256, n // 256 * 40, 7)) for n in range(count)]
    pictures = [one.convert("P") for one in pictures] if form == "GIF" else pictures
    written = io.BytesIO()
    pictures[0].save(written, form, save_all=True, append_images=pictures[1:])
    return written.getvalue()


BOMBS = {
    "13370 x 13370": (lambda: png(13_370, 13_370), "160,000,000 pixels"),
    "a PPM that is decoded in Python": (lambda: b"P6 3000 3000 200\n" + bytes(27_000_000), "4,000,000 pixels"),
    "GIF of 2,000 frames": (lambda: frames("GIF", 2000), "several frames"),
    "TIFF of 500 pages": (lambda: frames("TIFF", 500), "several frames"),
    "WebP of 100 frames": (lambda: frames("WEBP", 100), "several frames"),
    "PNG of 100 frames": (lambda: frames("PNG", 100), "several frames"),
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_picture_that_costs_too_much_is_refused_with_the_limit(what: str, place: Path) -> None:
    made, said = BOMBS[what]
    (place / "photos" / "bomb.png").write_bytes(made())
    found = attempt(["check", "photos", "--json"], place)
    assert found.code == 2 and said in found.out and not found.traceback, found.text
    assert found.peak_bytes < MEMORY_BYTES


def test_the_largest_picture_with_transparency_takes_bounded_memory(place: Path) -> None:
    """158 million pixels of 4 bytes: two copies, and what is copied band by band."""
    (place / "large").mkdir()
    (place / "large" / "a.png").write_bytes(png(12_600, 12_600, colour=6))
    command = ["prepare", "large", "--out", "new", "--trigger", "sks", "--class-word", "mug"]
    found = attempt(command, place)
    assert found.code == 0 and found.peak_bytes < MEMORY_BYTES, (found.peak_bytes, found.text)
