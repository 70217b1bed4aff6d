"""Every format that is read, with all that can be wrong in it: an error that names the file, and nothing else."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from support.hostile import MEMORY_BYTES, attempt

DEEP = 20_000
JSON_FAULTS: dict[str, bytes] = {
    "lists 20,000 deep": b"[" * DEEP + b"]" * DEEP,
    "tables 20,000 deep": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep inside": b'{"r": ' + b"[" * 60 + b"]" * 60 + b"}",
    "a list": b"[1, 2]",
    "a text": b'"x"',
    "null": b"null",
    "a number of 5,000 digits": b'{"r": ' + b"9" * 5000 + b"}",
    "half a character": b'{"\\ud800": "\\udfff", "r": "\\ud800"}',
    "nothing": b"",
    "cut short": b'{"r": 4, "targ',
    "UTF-16": '{"r": 4}'.encode("utf-16"),
    "no text": bytes(range(256)),
    "nothing that is known": b'{"x": 1}',
}
NOT_FINITE = {"NaN": b'{"r": NaN, "x": NaN}', "infinity": b'{"r": -Infinity}', "1e999": b'{"r": 1e999}'}
TOML_FAULTS: dict[str, bytes] = {
    "lists 20,000 deep": b"x = " + b"[" * DEEP + b"]" * DEEP,
    "tables 20,000 deep": b"x = " + b"{a=" * DEEP + b"1" + b"}" * DEEP,
    "a number of 5,000 digits": b"[train]\nsteps = " + b"9" * 5000,
    "not a number": b'base = "pocket"\n[optimizer]\nlearning_rate = nan\n[data]\npath = "photos"\n',
    "cut short": b'base = "pock',
    "UTF-16": 'base = "pocket"'.encode("utf-16"),
    "no text": bytes(range(256)),
    "nothing that is known": b"x = 1\n",
    "keys twice": b"x = 1\nx = 2\n",
    "a name with NUL": b'base = "a\\u0000b"\n[data]\npath = "a\\u0000b"\n',
    "a name of 5,000 letters": b'base = "' + b"a" * 5000 + b'"\n[data]\npath = "' + b"b" * 5000 + b'"\n',
}


def header(content: bytes) -> bytes:
    """A safetensors file of that header, and nothing behind it."""
    return struct.pack("<Q", len(content)) + content


def with_metadata(key: str, content: bytes) -> bytes:
    """A safetensors file of one tensor whose metadata have that text."""
    text = content.decode("utf-8", "replace")
    table = {"__metadata__": {key: text}, "x.lora_A.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    return header(json.dumps(table).encode()) + bytes(4)


def as_is(content: bytes) -> bytes:
    return content


Target = tuple[str, list[str], Callable[[bytes], bytes], dict[str, bytes], str]
TARGETS: dict[str, Target] = {
    # what: (file, command, what it is made of the fault, faults, how the error calls the file)
    "recipe": ("mine.toml", ["plan", "mine.toml"], as_is, TOML_FAULTS, "mine.toml|base"),
    "extended recipe": ("beneath.toml", ["plan", "above.toml"], as_is, TOML_FAULTS, "beneath|above"),
    "dataset card": ("photos/dataset.toml", ["check", "photos"], as_is, TOML_FAULTS, r"dataset\.toml"),
    "vocabulary": ("words.toml", ["caption", "bare", "--vocabulary", "words.toml"], as_is, TOML_FAULTS, "words"),
    "caption table": (
        "photos/metadata.jsonl", ["check", "photos", "--trigger", "sks"], as_is, JSON_FAULTS | NOT_FINITE,
        r"metadata\.jsonl",
    ),
    "PEFT configuration": (
        "peft/unet/adapter_config.json", ["inspect", "peft"], as_is, JSON_FAULTS | NOT_FINITE, "adapter_config"
    ),
    "header": ("mug.safetensors", ["inspect", "mug.safetensors"], header, JSON_FAULTS | NOT_FINITE, "mug"),
    "diffusers' metadata": (
        "mug.safetensors", ["inspect", "mug.safetensors"],
        lambda content: with_metadata("lora_adapter_metadata", content), JSON_FAULTS | NOT_FINITE, "mug",
    ),
    "our metadata": (
        "mug.safetensors", ["inspect", "mug.safetensors"], lambda content: with_metadata("finetune.modules", content),
        JSON_FAULTS | NOT_FINITE, "mug|finetune.modules",
    ),
    "pipeline index": ("base/model_index.json", ["plan", "own.toml"], as_is, JSON_FAULTS, "model_index|base"),
    "denoiser's configuration": ("base/unet/config.json", ["plan", "own.toml"], as_is, JSON_FAULTS, "config|base"),
    "scheduler": (
        "base/scheduler/scheduler_config.json", ["plan", "own.toml"], as_is, JSON_FAULTS, "scheduler|base"
    ),
    "text encoder's configuration": (
        "base/text_encoder/config.json", ["plan", "own.toml"], as_is, JSON_FAULTS, "config|base"
    ),
    "vocabulary of the tokenizer": (
        "base/tokenizer/tokenizer.json", ["check", "photos", "--base", "base"], as_is, JSON_FAULTS, "tokenizer|base"
    ),
    "weights index": (
        "base/unet/diffusion_pytorch_model.safetensors.index.json", ["plan", "own.toml"], as_is, JSON_FAULTS,
        "index|base",
    ),
}  # fmt: skip
MAY_PASS = {
    ("caption table", "nothing"), ("PEFT configuration", "nothing that is known"),
    ("our metadata", "nothing that is known"), ("diffusers' metadata", "nothing that is known"),
    # only what its weights are held against, when it is loaded, shows that it is another
    ("text encoder's configuration", "nothing that is known"), ("extended recipe", "a name with NUL"),
    ("extended recipe", "a name of 5,000 letters"),
}  # fmt: skip
CASES = [(what, fault) for what, (_, _, _, faults, _) in TARGETS.items() for fault in faults]


@pytest.mark.parametrize("what, fault", CASES, ids=[f"{what}: {fault}" for what, fault in CASES])
def test_a_fault_in_a_file_is_an_error_that_names_it(what: str, fault: str, place: Path) -> None:
    file, command, made, faults, called = TARGETS[what]
    (place / "above.toml").write_text('extends = "beneath"\nbase = "pocket"\n[data]\npath = "photos"\n')
    (place / "own.toml").write_text('base = "base"\n[data]\npath = "photos"\nallow_uncaptioned = true\n')
    spoilt = place / file
    if "index.json" in file:
        (spoilt.parent / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    spoilt.unlink(missing_ok=True)
    spoilt.write_bytes(made(faults[fault]))
    found = attempt(command, place)
    assert not found.traceback, found.err
    assert found.peak_bytes < MEMORY_BYTES
    if (what, fault) in MAY_PASS and found.code == 0:
        return
    assert found.code in (2, 5), (found.code, found.text)
    assert re.search(called, found.text) and "try:" in found.err, found.text
