"""safetensors files: whole or refused with what to do, never half written, and named by what they hold."""

import hashlib
import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finetune import tensors as weights
from finetune.errors import BaseError

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.bfloat16), "c": torch.zeros(0, 4)}


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "whole.safetensors"
    weights.write_tensors(TENSORS, path, {"who": "me"})
    return path


def refused(path: Path, words: str) -> None:
    for reads in (weights.read_header, weights.load_tensors, weights.payload_sha256):
        with pytest.raises(BaseError, match=words) as caught:
            reads(path)
        assert str(path) in caught.value.problem and caught.value.hint and caught.value.exit_code == 2


def test_what_is_written_is_read(file):
    header, found = weights.read_header(file), weights.load_tensors(file)
    assert header.metadata == {"who": "me"}
    assert header.shapes == {name: tuple(t.shape) for name, t in TENSORS.items()}
    assert header.dtypes == {"a": "BF16", "b": "F32", "c": "F32"}
    assert found.keys() == TENSORS.keys() and all(torch.equal(found[n], TENSORS[n]) for n in TENSORS)
    assert header.payload_start + 6 * 4 + 3 * 2 == file.stat().st_size


def test_views_and_transposed_tensors_are_written_whole(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    weights.write_tensors({"t": whole.T, "s": whole[1:, ::2]}, tmp_path / "x.safetensors", {})
    found = weights.load_tensors(tmp_path / "x.safetensors")
    assert torch.equal(found["t"], whole.T) and torch.equal(found["s"], whole[1:, ::2])


def test_a_file_cut_anywhere_is_refused(file, tmp_path):
    content = file.read_bytes()
    start = weights.read_header(file).payload_start
    for length in range(len(content)):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(content[:length])
        with pytest.raises(BaseError) as caught:
            weights.load_tensors(cut)
        words = ("not a safetensors file",) if length < 8 else ("truncated", "damaged")
        assert any(word in caught.value.problem for word in words), (length, caught.value.problem)
        assert length < start or "bytes" in caught.value.problem
    cut.write_bytes(content[:-1])
    refused(cut, "is truncated")


def test_a_file_with_something_behind_it_is_refused(file, tmp_path):
    longer = tmp_path / "longer.safetensors"
    longer.write_bytes(file.read_bytes() + b"\0")
    refused(longer, "longer than its header says")


def test_a_damaged_header_is_refused_in_words(file, tmp_path):
    content = file.read_bytes()
    n = struct.unpack("<Q", content[:8])[0]
    table = json.loads(content[8 : 8 + n])
    broken = {
        "no JSON": content[:8] + b"\xff" * n + content[8 + n :],
        "a list": _headed(b"[1, 2]", content[8 + n :]),
        "an entry that is none": _headed(json.dumps(table | {"a": 3}).encode(), content[8 + n :]),
        "offsets that are none": _headed(
            json.dumps(table | {"a": {"dtype": "F32", "shape": [1], "data_offsets": ["x"]}}).encode(), content[8 + n :]
        ),
        "no dtype": _headed(
            json.dumps(table | {"a": {"shape": [3], "data_offsets": [0, 6]}}).encode(), content[8 + n :]
        ),
        "no metadata of text": _headed(json.dumps(table | {"__metadata__": [1]}).encode(), content[8 + n :]),
        "a length beyond belief": struct.pack("<Q", 1 << 40) + content[8:],
    }
    for name, bad in broken.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(bad)
        with pytest.raises(BaseError, match=r"damaged|not a safetensors file|longer|truncated"):
            weights.load_tensors(path)


def _headed(header: bytes, payload: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + payload


def test_a_header_that_lies_about_its_tensors_is_refused(file, tmp_path):
    content = file.read_bytes()
    n = struct.unpack("<Q", content[:8])[0]
    table = json.loads(content[8 : 8 + n])
    table["b"]["shape"] = [200, 3]
    path = tmp_path / "lies.safetensors"
    path.write_bytes(_headed(json.dumps(table).encode(), content[8 + n :]))
    with pytest.raises(BaseError) as caught:
        weights.load_tensors(path)
    assert str(path) in caught.value.problem and caught.value.hint


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".pkl", ".CKPT"])
def test_a_pickled_file_is_refused_unopened_with_the_way_to_convert_it(suffix, tmp_path):
    opened = tmp_path / "opened"

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(opened),))

    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BaseError, match="pickled file") as caught:
        weights.load_tensors(path)
    assert "weights_only=True" in caught.value.hint and str(path) in caught.value.hint
    assert not opened.exists()


def test_the_way_to_convert_a_pickled_file_works(tmp_path):
    import shlex
    import subprocess
    import sys

    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"w": torch.arange(4.0), "epoch": 3}}, path)
    with pytest.raises(BaseError) as caught:
        weights.read_header(path)
    command = shlex.split(caught.value.hint.partition(": ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert torch.equal(weights.load_tensors(path.with_suffix(".safetensors"))["w"], torch.arange(4.0))


def test_a_pickle_under_a_safetensors_name_and_other_files_are_refused(tmp_path):
    for name, content in {"pickle": pickle.dumps({"a": 1}), "html": b"<!DOCTYPE html>" * 9, "empty": b""}.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        refused(path, "not a safetensors file")
    refused(tmp_path / "none.safetensors", "no file")
    refused(tmp_path, "no file")


def test_the_payload_hash_does_not_depend_on_the_metadata_but_on_every_byte(file, tmp_path):
    other = tmp_path / "other.safetensors"
    weights.write_tensors(TENSORS, other, {"who": "someone else", "more": "words"})
    assert weights.payload_sha256(other) == weights.payload_sha256(file)
    assert weights.file_sha256(other) != weights.file_sha256(file)
    start = weights.read_header(file).payload_start
    assert weights.payload_sha256(file) == hashlib.sha256(file.read_bytes()[start:]).hexdigest()
    content = bytearray(file.read_bytes())
    for at in range(start, len(content)):
        content[at] ^= 1
        other.write_bytes(content)
        assert weights.payload_sha256(other) != weights.payload_sha256(file)
        content[at] ^= 1


def test_a_write_that_fails_leaves_the_old_file_as_it_was(file, monkeypatch):
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        weights.write_tensors({"a": torch.zeros(9)}, file, {})
    assert file.read_bytes() == before and [p.name for p in file.parent.iterdir()] == [file.name]


def test_the_new_file_takes_the_name_only_when_it_is_whole(file, monkeypatch):
    seen = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append(
            (weights.load_tensors(self).keys(), weights.load_tensors(target).keys(), self.parent == target.parent)
        )
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    weights.write_tensors({"new": torch.zeros(9)}, file, {})
    assert seen == [({"new": 0}.keys(), TENSORS.keys(), True)]
    assert weights.load_tensors(file).keys() == {"new"} and [p.name for p in file.parent.iterdir()] == [file.name]


def test_the_fingerprint_depends_on_names_shapes_types_and_values_and_not_on_the_order():
    same = dict(reversed(TENSORS.items()))
    other = {
        "a name": {"x": TENSORS["a"], "b": TENSORS["b"], "c": TENSORS["c"]},
        "a shape": TENSORS | {"b": TENSORS["b"].reshape(3, 2)},
        "an empty shape": TENSORS | {"c": torch.zeros(4, 0)},
        "a type": TENSORS | {"a": TENSORS["a"].view(torch.float16)},
        "a value": TENSORS | {"b": TENSORS["b"] + torch.eye(3)[:2] * 1e-6},
        "swapped": {"a": TENSORS["b"], "b": TENSORS["a"], "c": TENSORS["c"]},
        "one less": {"a": TENSORS["a"], "b": TENSORS["b"]},
    }
    prints = [weights.fingerprint(t) for t in (TENSORS, *other.values())]
    assert weights.fingerprint(same) == prints[0] and len(set(prints)) == len(prints)
    transposed = {"t": TENSORS["b"].T.contiguous().T, "b": TENSORS["b"]}
    assert weights.fingerprint({"t": transposed["t"]}) == weights.fingerprint({"t": TENSORS["b"]})


def test_stock_safetensors_reads_what_we_write_and_we_what_it_writes(file, tmp_path):
    save_file(TENSORS, tmp_path / "theirs.safetensors", {"who": "they"})
    assert weights.load_tensors(tmp_path / "theirs.safetensors").keys() == TENSORS.keys()
    assert weights.payload_sha256(tmp_path / "theirs.safetensors") == weights.payload_sha256(file)


def test_no_tensors_at_all_are_written_and_read_back(tmp_path: Path) -> None:
    weights.write_tensors({}, tmp_path / "none.safetensors", {})
    assert weights.load_tensors(tmp_path / "none.safetensors") == {}
