"""Folders in which anything may lie: pipes, sockets, devices and loops where files are meant, and names that bite."""

import json
import os
import re
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from support.hostile import attempt

Put = Callable[[Path], object]


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def listening(path: Path) -> None:
    path.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fchdir(folder)  # a socket's path may have 108 letters
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.close(folder)


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)


def link(to: str) -> Put:
    def put(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(to)

    return put


def text(content: str | bytes) -> Put:
    def put(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))

    return put


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), "red").save(path, "PNG")


ODD: dict[str, Put] = {
    "a pipe": pipe, "a socket": listening, "a folder": folder, "a link to itself": link("x.png"),
    "a device without an end": link("/dev/zero"), "memory of the process": link("/proc/self/mem"),
    "a file of the kernel": link("/proc/self/environ"), "a terminal": link("/dev/tty"),
}  # fmt: skip
"""what is put where a file is meant"""
CHECK = ["check", "photos", "--trigger", "sks"]
FILES: dict[str, tuple[str, list[str], tuple[int, ...], str]] = {
    # the file that is replaced, by which command it is read, exit codes, words
    "a picture": ("photos/x.png", CHECK, (0, 2), "photo"),
    "a caption": ("photos/photo 0.txt", CHECK, (2,), r"photo 0"),
    "a caption table": ("photos/metadata.jsonl", CHECK, (0, 2), "metadata|photo"),
    "a dataset card": ("photos/dataset.toml", CHECK, (0, 2), "dataset.toml|photo"),
    "a recipe": ("mine.toml", ["plan", "mine.toml"], (2,), "mine.toml"),
    "a recipe beneath": ("words.toml", ["plan", "above.toml"], (2,), "words|above"),
    "prompts": (
        "prompts.txt", ["sample", "--base", "pocket", "--prompts", "prompts.txt", "--steps", "1", "--out", "o"],
        (0, 2), "prompts.txt",
    ),
    "an adapter": ("mug.safetensors", ["inspect", "mug.safetensors"], (2,), "mug.safetensors"),
    "a PEFT configuration": ("peft/unet/adapter_config.json", ["inspect", "peft"], (2, 5), "adapter_config|peft"),
    "PEFT weights": ("peft/unet/adapter_model.safetensors", ["inspect", "peft"], (2, 5), "adapter_model|peft"),
    "a pipeline index": ("base/model_index.json", ["plan", "own.toml"], (2,), "base"),
    "a denoiser's configuration": ("base/unet/config.json", ["plan", "own.toml"], (2,), "base"),
    "a denoiser's weights": (
        "base/unet/diffusion_pytorch_model.safetensors",
        ["sample", "--base", "base", "--prompt", "x", "--out", "o"], (2,), "base",
    ),
    "a run's record": ("run/run.json", ["status", "run"], (0, 2, 4), "run"),
    "a run's log": ("run/events.jsonl", ["status", "run"], (0, 2, 4), "run"),
    "a run's recipe": ("run/recipe.toml", ["report", "run"], (0, 2), "run|report"),
    "a run's lock": ("run/run.lock", ["status", "run"], (0, 2, 4), "run"),
}  # fmt: skip
RUN = '{"event": "stage", "time": 1.0, "name": "training", "total": 4}\n'


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("file", FILES)
def test_what_is_no_file_is_not_read_as_one(file: str, what: str, place: Path) -> None:
    where, command, codes, words = FILES[file]
    text(RUN)(place / "run/events.jsonl")
    text('{"outcome": "interrupted", "steps": 4}')(place / "run/run.json")
    text('extends = "words"\nbase = "pocket"\n')(place / "above.toml")
    text('base = "base"\n[data]\npath = "photos"\n')(place / "own.toml")
    ODD[what](place / where)
    found = attempt(command, place)
    assert not found.traceback, found.err
    assert found.code in codes and re.search(words, found.text), (found.code, found.text)


class Nasty(NamedTuple):
    put: dict[str, Put]
    command: list[str]
    codes: tuple[int, ...]
    words: str


def recipe(lines: str) -> dict[str, Put]:
    return {"odd.toml": text(f'base = "pocket"\n{lines}\n[data]\npath = "photos"\ntrigger = "sks"\n')}


def header(table: object, payload: bytes = b"") -> Put:
    head = json.dumps(table).encode()
    return text(struct.pack("<Q", len(head)) + head + payload)


def tensor(name: str, dtype: str, shape: list[int], ends: list[int]) -> dict[str, object]:
    return {name: {"dtype": dtype, "shape": shape, "data_offsets": ends}}


PLAN, INSPECT = ["plan", "odd.toml"], ["inspect", "odd.safetensors"]
KEY = "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"
NASTY: dict[str, Nasty] = {
    # -- names -----------------------------------------------------------------------------------------------------
    "a loop of folders": Nasty({"photos/in/x.txt": text(""), "photos/in/up": link("..")}, CHECK, (0, 2), "photo"),
    "a hundred folders deep": Nasty({"photos/" + "d/" * 100 + "x.png": picture}, CHECK, (0, 2), "photo"),
    "a name with an option": Nasty({"photos/--help.png": picture}, CHECK, (0, 2), "photo"),
    "a name with a new line": Nasty({"photos/a\nb.png": picture}, CHECK, (0, 2), "photo"),
    "a name of 250 letters": Nasty({"photos/" + "a" * 246 + ".png": picture}, CHECK, (0, 2), "photo"),
    "a name that is no UTF-8": Nasty({"photos/caf\udce9.png": picture}, CHECK, (0, 2), "photo"),
    "no UTF-8, prepared": Nasty(
        {"photos/caf\udce9.png": picture}, ["prepare", "photos", "--out", "n", "--trigger", "sks"], (0, 2), "photo|caf"
    ),
    "a name from right to left": Nasty({"photos/\u202egnp.png": picture}, CHECK, (0, 2), r"\\u202e|photo"),
    "an extension twice": Nasty({"photos/x.png.exe": picture}, CHECK, (0, 2), "photo"),
    # -- captions --------------------------------------------------------------------------------------------------
    "a caption of 10 MB": Nasty({"photos/photo 0.txt": text("a sks " * 1_700_000)}, CHECK, (0, 2), "photo 0"),
    "a caption with NUL": Nasty({"photos/photo 0.txt": text("a sks\x00mug")}, CHECK, (0, 2), "photo"),
    "a caption of marks": Nasty({"photos/photo 0.txt": text("\u202e\u2066\u200b")}, CHECK, (0, 2), "photo 0"),
    "half a character": Nasty({"photos/photo 0.txt": text(b"a sks \xed\xa0\x80")}, CHECK, (2,), "photo 0"),
    "a row of elsewhere": Nasty(
        {"photos/metadata.jsonl": text('{"file_name": "../../../etc/passwd", "text": "a sks"}')}, CHECK, (2,), "passwd"
    ),
    "a row with NUL": Nasty(
        {"photos/metadata.jsonl": text('{"file_name": "a\\u0000.png", "text": "a sks"}')}, CHECK, (2,), "metadata"
    ),
    "a row with an escape": Nasty(
        {"photos/metadata.jsonl": text('{"file_name": "\\u001b[2J.png", "text": 7}')}, CHECK, (2,), "metadata"
    ),
    # -- recipes ---------------------------------------------------------------------------------------------------
    "it extends itself": Nasty({"odd.toml": text('extends = "odd"\n')}, PLAN, (2,), "odd"),
    "it extends in a ring": Nasty(
        {"odd.toml": text('extends = "b"\n'), "b.toml": text('extends = "odd"\n')}, PLAN, (2,), "odd"
    ),
    "it extends a thousand": Nasty(
        {"odd.toml": text('extends = "n0"\n')} | {f"n{i}.toml": text(f'extends = "n{i + 1}"\n') for i in range(999)},
        PLAN, (2,), "extended by",
    ),
    "it extends a folder": Nasty({"odd.toml": text('extends = "photos"\n')}, PLAN, (2,), "photos"),
    "10^18 steps": Nasty(recipe("[train]\nsteps = 1000000000000000000"), PLAN, (0, 2), "steps"),
    "a rank of 10^9": Nasty(recipe("[adapter]\nrank = 1000000000"), PLAN, (2, 3), "rank|memory"),
    "a seed of 2^70": Nasty(recipe("[train]\nseed = 1180591620717411303424"), PLAN, (2,), "seed"),
    "a rate of 1e308": Nasty(recipe("[optimizer]\nlearning_rate = 1e308"), PLAN, (0, 2), "learning_rate|steps"),
    "a name that climbs": Nasty(recipe('name = "../../evil"'), PLAN, (2,), "name"),
    "a name with an escape": Nasty(recipe('name = "a\\u001b[2J"'), PLAN, (2,), "name"),
    "a prompt of 1 MB": Nasty(recipe(f'[sample]\nprompts = ["{"sks " * 250_000}"]'), PLAN, (0, 2), "prompt|steps"),
    "10,000 prompts": Nasty(
        recipe("[sample]\nprompts = [" + ", ".join(f'"a sks {n}"' for n in range(10_000)) + "]"), PLAN, (0, 2), "."
    ),
    "a prompt of braces": Nasty(recipe('[sample]\nprompts = ["' + "{" * 5000 + '"]'), PLAN, (2,), "prompt"),
    "pictures of the kernel": Nasty(
        {"odd.toml": text('base = "pocket"\n[data]\npath = "/proc/self"\ntrigger = "sks"\n')}, PLAN, (2,), "/proc"
    ),
    "a base of the kernel": Nasty(
        {"odd.toml": text('base = "/proc/self"\n[data]\npath = "photos"\ntrigger = "sks"\n')}, PLAN, (2,), "/proc"
    ),
    # -- adapters --------------------------------------------------------------------------------------------------
    "a shape of 2^80": Nasty(
        {"odd.safetensors": header(tensor(KEY, "F32", [1 << 40, 1 << 40], [0, 4]), bytes(4))}, INSPECT, (2,), "odd"
    ),
    "offsets that turn back": Nasty(
        {"odd.safetensors": header(tensor(KEY, "F32", [1], [4, 0]), bytes(4))}, INSPECT, (2,), "odd"
    ),
    "a type that is none": Nasty(
        {"odd.safetensors": header(tensor(KEY, "F31", [1], [0, 4]), bytes(4))}, INSPECT, (2, 5), "odd"
    ),
    "tensors on each other": Nasty(
        {"odd.safetensors": header(tensor("a", "F32", [1], [0, 4]) | tensor("b", "F32", [1], [0, 4]), bytes(4))},
        INSPECT, (2,), "odd",
    ),
    "a name with an escape, in a tensor": Nasty(
        {"odd.safetensors": header(tensor("\x1b]0;x\x07.lora_A.weight", "F32", [1], [0, 4]), bytes(4))},
        INSPECT, (0, 2, 5), "odd|lora_A",
    ),
    "50,000 tensors": Nasty(
        {"odd.safetensors": header({k: v for n in range(50_000)
                                    for k, v in tensor(f"t{n}.lora_A.weight", "F32", [0], [0, 0]).items()})},
        INSPECT, (0, 2, 5), "odd",
    ),
    "metadata of 5 MB": Nasty(
        {"odd.safetensors": header({"__metadata__": {"ss_tag_frequency": "{" * 5_000_000}}
                                   | tensor(KEY, "F32", [1, 1], [0, 4]), bytes(4))},
        INSPECT, (0, 2, 5), "odd|lora",
    ),
    "a rank of 10^18": Nasty(
        {"peft/unet/adapter_config.json": text('{"r": 1000000000000000000, "lora_alpha": 1, "peft_type": "LORA"}')},
        ["inspect", "peft"], (0, 2, 5), "peft|rank|lora",
    ),
    "an alpha of 1e300": Nasty(
        {"peft/unet/adapter_config.json": text('{"r": 2, "lora_alpha": 1e300, "peft_type": "LORA"}')},
        ["verify", "peft", "--base", "pocket"], (2, 5), "peft|alpha|finite",
    ),
    # -- runs ------------------------------------------------------------------------------------------------------
    "events of other types": Nasty(
        {"run/events.jsonl": text('{"event": "stepped", "time": "x", "step": {}}\n' * 5), "run/run.json": text("[]")},
        ["status", "run"], (0, 2, 4), "run",
    ),
    "a line of 20 MB": Nasty(
        {"run/events.jsonl": text('{"event": "' + "x" * 20_000_000)}, ["report", "run"], (0, 2), "report|run"
    ),
    "an outcome with an escape": Nasty(
        {"run/run.json": text('{"outcome": "failed", "reason": "\\u001b]0;x\\u0007", "steps": -1}')},
        ["status", "run"], (0, 2, 4), "failed",
    ),
    "an owner of another world": Nasty(
        {"run/run.json": text("{}"), "run/run.lock": text('{"host": "\\u001b[2J", "pid": 99999999999999999999}')},
        ["status", "run"], (0, 2, 4), "run",
    ),
}  # fmt: skip
DANGEROUS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize("what", NASTY)
def test_what_is_nasty_is_told_in_words(what: str, place: Path) -> None:
    case = NASTY[what]
    for name, put in case.put.items():
        put(place / name)
    found = attempt(case.command, place)
    assert not found.traceback, found.err
    assert found.code in case.codes and re.search(case.words, found.text), (found.code, found.text[-1500:])
    assert found.code == 0 or "error:" in found.text
    assert not DANGEROUS.search(found.text)
