"""Prompts of `sample` take their words from the adapters in use; what is stacked is said; nothing is overwritten."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.bases import tiny_base
from support.command import sampled

import finetune
from finetune import families
from finetune import tensors as weights
from finetune.adapters.change import target_shapes
from finetune.adapters.lora import Lora
from finetune.errors import InputError, RunError
from finetune.families.base import components
from finetune.files import layouts
from finetune.files.metadata import About, about, make_metadata
from finetune.sampling.request import AdapterWeight, SampleSet
from finetune.sampling.session import Session
from finetune.sampling.words import adapters_in_use, word_notices, written_out

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),  # two adapters are meant
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(tiny_base(tmp_path_factory.mktemp("base") / "sd15", "sd15"))


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory) -> dict[str, Path]:
    """Adapters: a mug `sks`, a style `zwx` without a class word, one of another trainer that says its trigger alone,
    one that says nothing."""
    folder, family = tmp_path_factory.mktemp("adapters"), families.load(tiny)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    out, width = target_shapes(components(family))[name]
    modules = {name: Lora(torch.ones(1, width), torch.ones(out, 1), 0.1)}
    tensors = layouts.universal(modules, torch.float32, "sd")
    told = {
        "mug": make_metadata(About.of(family.facts, trigger="sks", class_word="mug"), modules, "mug", tensors),
        "brand": make_metadata(About.of(family.facts, trigger="zwx"), modules, "brand", tensors),
        "foreign": {"modelspec.trigger_phrase": "ohwx"},
        "silent": {},
    }
    for stem, metadata in told.items():
        weights.write_tensors(tensors, folder / f"{stem}.safetensors", metadata)
    layouts.write_peft(modules, folder / "peft", {k: v for k, v in told["mug"].items() if k.startswith("finetune.")})
    return {stem: folder / f"{stem}.safetensors" for stem in told} | {"peft": folder / "peft"}


def written(prompt: str, files: dict[str, Path], *used: str, **said: str) -> str:
    adapters = adapters_in_use([AdapterWeight(files[name]) for name in used])
    return written_out(SampleSet([prompt], **said), adapters).prompts[0]


# --- which word ------------------------------------------------------------------------------------------------------


def test_an_adapter_file_tells_its_class_word(files):
    told = about(weights.read_header(files["mug"]).metadata)
    assert told is not None and (told.trigger, told.class_word) == ("sks", "mug")


@pytest.mark.parametrize("name", ["mug", "peft"])
def test_the_adapter_in_use_gives_its_words(name, files):
    assert written("a {trigger} {class_word}, a {class_word}", files, name) == "a sks mug, a mug"


def test_what_is_asked_for_decides_and_needs_no_adapter(files):
    assert (
        written("a {trigger} {class_word}", files, "mug", trigger="ohwx", class_word="umbrella") == "an ohwx umbrella"
    )
    assert written("a {class_word}", files, class_word="umbrella") == "an umbrella"
    assert written("a {trigger}", files, "foreign") == "an ohwx"


def test_two_adapters_with_two_triggers_need_a_word_on_which(files):
    with pytest.raises(InputError) as caught:
        written("a {trigger}", files, "mug", "brand")
    assert "'sks' of mug.safetensors, 'zwx' of brand.safetensors" in caught.value.problem
    assert "`trigger`" in caught.value.hint
    assert written("a {trigger}", files, "mug", "brand", trigger="zwx") == "a zwx"
    assert written("a sks mug, zwx style", files, "mug", "brand") == "a sks mug, zwx style"
    assert written("a {class_word}", files, "mug", "brand") == "a mug", "only one of them names a class word"
    assert written("a {trigger}", files, "mug", "silent", "peft") == "a sks"


def test_a_trigger_asked_for_decides_whose_class_word_is_meant(files):
    with pytest.raises(InputError, match=r": brand\.safetensors names no class word"):
        written("a {trigger} {class_word}", files, "mug", "brand", trigger="zwx")
    assert written("a {trigger} {class_word}", files, "mug", "brand", trigger="sks") == "a sks mug"


@pytest.mark.parametrize(
    ("prompt", "used", "said", "words"),
    [
        ("a {trigger}", (), {}, "there is no adapter to name a trigger"),
        ("a {class_word}", ("brand",), {}, "brand.safetensors names no class word"),
        ("a {trigger}", ("silent",), {}, "silent.safetensors names no trigger"),
        ("a {red|blue} mug", ("mug",), {}, "{red|blue} is a wildcard"),
        ("a mug", ("mug",), {"negative": "{bad}"}, "the negative prompt"),
        ("a mug", ("mug",), {"negative": "a {x|y}"}, "is a wildcard"),
        ("a mug", (), {"trigger": " "}, "the trigger is blank"),
        ("a mug", ("mug", "mug"), {}, "is named twice"),
    ],
)
def test_what_cannot_be_filled_in_is_said_with_the_prompt(prompt, used, said, words, files):
    with pytest.raises(InputError) as caught:
        written(prompt, files, *used, **said)
    assert words in caught.value.problem and caught.value.hint


# --- what is worth knowing -------------------------------------------------------------------------------------------


def notices(tiny: str, files: dict[str, Path], prompts: list[str], used: dict[str, float], **said: str) -> list[str]:
    adapters = adapters_in_use([AdapterWeight(files[name], weight) for name, weight in used.items()])
    return list(word_notices(written_out(SampleSet(prompts, **said), adapters), tiny, families.detect(tiny), adapters))


def test_each_trigger_that_no_prompt_has_is_said_with_its_file(tiny, files):
    [one] = notices(tiny, files, ["a sks mug", "a cup"], {"mug": 1, "brand": 0.5})
    assert "'zwx' of brand.safetensors" in one
    assert len(notices(tiny, files, ["a mug"], {"mug": 1, "brand": 0.5})) == 2
    assert not notices(tiny, files, ["a mug"], {"mug": 0}), "at weight 0 it is not in use"
    assert not notices(tiny, files, ["a mug"], {"silent": 1}) and not notices(tiny, files, ["a mug"], {})
    assert "'ohwx'" in notices(tiny, files, ["a mug"], {"mug": 1}, trigger="ohwx")[0]
    assert not notices(tiny, files, ["an ohwx mug"], {"mug": 1}, trigger="ohwx")


def test_a_prompt_longer_than_the_base_reads_is_said_with_where_it_is_written(tiny, files):
    [one] = notices(tiny, files, ["a cup", "a red cup " * 40 + "the end"], {})
    assert one.startswith("prompt 2: ") and "the base reads 77" in one and one.endswith("the end'")


def test_python_is_warned(tiny, files, tmp_path):
    with pytest.warns(UserWarning, match="no prompt has the trigger 'sks'"):
        made = finetune.sample(tiny, ["a cup"], tmp_path / "out", [(files["mug"], 1)], steps=1, size=(64, 64))
    assert [one.path.name for one in made] == ["00-0.png", "sheet.png"]
    made = finetune.sample(tiny, ["a {trigger}"], tmp_path / "b", steps=1, size=(64, 64), trigger="ohwx")
    with Image.open(made[0].path) as image:
        assert image.text["prompt"] == "an ohwx"  # type: ignore[attr-defined]


# --- the command -----------------------------------------------------------------------------------------------------


def test_stacked_adapters_are_said_with_weights_and_triggers_and_noted_in_each_picture(tiny, files, tmp_path, capsys):
    order = ("--base", tiny, "--steps", 1, "--size", "64x64", "--prompt", "a {trigger} {class_word}, zwx style",
             "--adapter", f"{files['mug']}:0.8", "--adapter", f"{files['brand']}:-0.5", "--trigger", "sks")  # fmt: skip
    code, said = sampled(capsys, *order, "--out", tmp_path / "out")
    assert code == 0, said
    assert "2 adapters together, their changes add up: mug.safetensors at weight 0.8 (its trigger is 'sks'); " in said
    assert "brand.safetensors at weight -0.5 (its trigger is 'zwx')" in said and "warning" not in said
    for name in ("00-0.png", "sheet.png"):
        with Image.open(tmp_path / "out" / name) as image:
            told = image.text  # type: ignore[attr-defined]
        assert told["prompt"] == "a sks mug, zwx style"
        assert told["triggers"] == "mug.safetensors: sks, brand.safetensors: zwx"
        assert "triggers: mug.safetensors: sks" in told["parameters"]
    code, said = sampled(capsys, *order, "--out", tmp_path / "json", "--json")
    found = json.loads(said)
    assert code == 0 and len(found["notes"]) == 1 and found["warnings"] == []


def test_a_warning_stands_on_the_screen_and_in_json_and_not_in_quiet(tiny, files, tmp_path, capsys):
    order = ("--base", tiny, "--steps", 1, "--size", "64x64", "--prompt", "a cup", "--adapter", files["mug"])
    assert "warning: no prompt has the trigger 'sks'" in sampled(capsys, *order, "--out", tmp_path / "a")[1]
    found = json.loads(sampled(capsys, *order, "--out", tmp_path / "b", "--json")[1])
    assert "'sks'" in found["warnings"][0] and "mug.safetensors at weight 1" in found["notes"][0]
    code, said = sampled(capsys, *order, "--out", tmp_path / "c", "--quiet")
    assert code == 0 and said.startswith("1 picture in ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a cup\n\na {red|blue} mug\n", ("line 3", "{red|blue} is a wildcard")),
        ("a cup\n#a remark\n", ("line 2", "begins with #")),
        ("a cup --ss euler\n", ("line 1", "--ss is no option")),
        ("a cup\na {class_word}\n", ("line 2", "no adapter to name a class word", "--class-word")),
        ("\n \n", ("has no prompt",)),
    ],
)
def test_a_prompt_file_is_held_to_the_same_and_the_line_is_named(text, words, tiny, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text(text)
    code, said = sampled(capsys, "--base", tiny, "--prompts", file, "--prompt", "x", "--out", tmp_path / "out")
    assert code == 2 and "prompts.txt" in said and "try: " in said and all(word in said for word in words), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--prompt", "a {subject}"), "--prompt 1, \"a {subject}\": {subject} is an unknown placeholder"),
        (("--prompt", "a", "--merged"), "--merged: there is no adapter"),
        (("--prompt", "a", "--negative", "b", "--guidance", 1), "--negative has no effect"),
        (("--prompt", "a", "--adapter", "FILE:nan"), "is nan"),
        (("--prompt", "a", "--adapter", "FILE:inf"), "is inf"),
    ],
)  # fmt: skip
def test_what_would_have_no_effect_or_no_meaning_is_refused(more, words, tiny, files, tmp_path, capsys):
    more = [str(word).replace("FILE", str(files["mug"])) for word in more]
    code, said = sampled(capsys, "--base", tiny, "--out", tmp_path / "out", *more)
    assert code == 2 and words in said and "try: " in said, said
    assert not (tmp_path / "out").exists()


# --- where to --------------------------------------------------------------------------------------------------------


@pytest.fixture
def unpainted(monkeypatch):
    """No base is opened: whoever tries fails the test."""
    monkeypatch.setattr(Session, "open", lambda *_: pytest.fail("a base was opened"))


def draw(tiny: str, out: Path, seed: int = 0) -> None:
    finetune.sample(tiny, ["a cup"], out, steps=1, size=(64, 64), seed=seed)


@pytest.mark.parametrize("name", ["00-0.png", "sheet.png"])
def test_pictures_of_an_earlier_call_stay_and_a_free_folder_is_named(name, tiny, tmp_path, unpainted):
    out = tmp_path / "out"
    out.mkdir(), (tmp_path / "out-2").mkdir()
    (out / name).write_bytes(b"precious")
    with pytest.raises(RunError) as caught:
        draw(tiny, out)
    assert name in caught.value.problem and str(tmp_path / "out-3") in caught.value.hint
    assert (out / name).read_bytes() == b"precious" and [p.name for p in out.iterdir()] == [name]


def test_other_files_in_the_folder_are_no_hindrance_and_stay(tiny, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    draw(tiny, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00-0.png", "notes.txt", "sheet.png"]


def test_the_folder_is_named_where_it_is_the_current_one(tiny, tmp_path, unpainted, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "sheet.png").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(RunError) as caught:
        draw(tiny, Path("."))
    assert str(tmp_path / "here-2") in caught.value.hint


@pytest.mark.parametrize("place", ["file", "file/inside", "n" * 300])
def test_a_folder_that_cannot_be_written_is_found_out_before_anything_is_painted(place, tiny, tmp_path, unpainted):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="cannot write into"):
        draw(tiny, tmp_path / "new" / place if place.startswith("n") else tmp_path / place)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"
