"""Nothing that a file brings along is run: no pickle, no Python beside a model; a chat template stays in a sandbox."""

import json
import pickle
import sys
from pathlib import Path

import pytest
from support.hostile import attempt, forked
from support.photos import photos

from finetune.captioning.model import loaded_part
from finetune.families.folder import chat_form, language_tokenizer
from finetune.tensors import PICKLED

RAN = "it ran"


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (RAN, "w")


@pytest.mark.parametrize("suffix", PICKLED)
@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "FILE"],
        ["verify", "FILE", "--base", "pocket"],
        ["export", "--from", "FILE"],
        ["sample", "--base", "pocket", "--adapter", "FILE", "--prompt", "x", "--out", "new"],
        ["sample", "--base", "FILE", "--prompt", "x", "--out", "new"],
    ],
    ids=lambda command: command[0],
)
def test_a_pickle_is_refused_and_not_opened(command: list[str], suffix: str, place: Path) -> None:
    (place / f"bomb{suffix}").write_bytes(pickle.dumps(Bomb()))
    found = attempt([word.replace("FILE", f"bomb{suffix}") for word in command], place)
    assert not found.traceback and found.code == 2 and "pickle" in found.err, found.text
    assert not (place / RAN).exists()


def test_a_pickle_in_the_place_of_weights_is_no_weights(place: Path) -> None:
    weights = place / "base/unet/diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.with_suffix(".bin").write_bytes(pickle.dumps({"x": Bomb()}))
    (place / "mug.safetensors").unlink()
    (place / "mug.safetensors").write_bytes(pickle.dumps(Bomb()))
    for command in (["sample", "--base", "base", "--prompt", "x", "--out", "new"], ["inspect", "mug.safetensors"]):
        found = attempt(command, place)
        assert not found.traceback and found.code in (2, 5) and "error:" in found.err, found.text
        assert not (place / RAN).exists()


def with_code(folder: Path) -> Path:
    """A model of a kind of its own, whose Python lies beside it."""
    folder.mkdir()
    own = {name: "evil.Evil" for name in ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor", "AutoModel")}
    told = {"model_type": "evil", "tokenizer_class": "Evil", "processor_class": "Evil"}
    told |= {"auto_map": {**own, "AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    for name in ("config", "tokenizer_config", "processor_config", "preprocessor_config"):
        (folder / f"{name}.json").write_text(json.dumps(told))
    (folder / "vocab.json").write_text('{"a": 0, "b": 1}')
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "evil.py").write_text(f"open({str(folder.parent / RAN)!r}, 'w')\nclass Evil: pass\n")
    return folder


@pytest.mark.parametrize(
    "what", ["AutoTokenizer", "AutoProcessor", "AutoModelForImageTextToText", "AutoConfig", "the command"]
)
def test_python_beside_a_model_is_not_run_even_when_someone_says_yes(what: str, tmp_path: Path) -> None:
    folder = with_code(tmp_path / "tokenizer")
    for caption in photos(tmp_path / "photos").glob("*.txt"):
        caption.unlink()

    def work() -> None:
        if what == "AutoTokenizer":
            language_tokenizer().load(tmp_path)
        else:
            loaded_part(what, folder)

    yes = b"y\n" * 9
    if what == "the command":
        found = attempt(["caption", "photos", "--with", "tokenizer"], tmp_path, stdin=yes)
        assert found.code == 2 and "tokenizer" in found.err, found.text
    else:
        found = forked(work, tmp_path, stdin=yes)
    assert found.code != 0 and "[y/N]" not in found.text, found.text
    assert not (tmp_path / RAN).exists()
    assert "evil" not in sys.modules


ESCAPES = {
    "asks for a class of Python": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "opens a file": "{{ cycler.__init__.__globals__.os.popen('touch RAN').read() }}",
    "never ends": "{% for a in range(99999999) %}x{% endfor %}",
}


@pytest.mark.parametrize("what", ESCAPES)
def test_a_chat_template_cannot_leave_its_sandbox(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.json").write_text('{"a": 0, "b": 1}')
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Qwen2Tokenizer", "chat_template": ESCAPES[what].replace("RAN", RAN)})
    )

    def work() -> None:
        tokenizer = language_tokenizer().load(tmp_path)
        chat_form(tokenizer, [{"role": "user", "content": "x"}])

    found = forked(work, tmp_path)
    assert found.code != 0 and "BaseError: the chat template of Qwen2Tokenizer" in found.err, found.err
    assert not (tmp_path / RAN).exists()
