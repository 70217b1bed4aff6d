"""Captions by tiny models with random weights, which talk nonsense: all around their answers is as it is for real."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import captioners

from finetune.captioning import model
from finetune.captioning.choice import CaptionerChoice
from finetune.captioning.dataset import caption_dataset
from finetune.captioning.model import CaptionModel
from finetune.data.text.wording import CaptionWords
from finetune.errors import BaseError, DataError, InputError
from finetune.events import unheard

MUG = CaptionWords("sks", "mug")
MODELS = {"blip": captioners.blip, "qwen2_vl": captioners.qwen2_vl, "florence2": captioners.florence2,
          "vit_gpt2": captioners.vit_gpt2}  # fmt: skip
PROMPTS = {"blip": "", "qwen2_vl": model.INSTRUCTION, "florence2": "<CAPTION>", "vit_gpt2": ""}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MODELS.items()}


@pytest.fixture
def files(tmp_path) -> list[Path]:
    made = [tmp_path / "pictures" / f"IMG_{i}.png" for i in range(3)]
    made[0].parent.mkdir()
    for file, size, colour in zip(made, [(64, 64), (64, 96), (96, 56)], ["red", "green", "navy"], strict=True):
        Image.new("RGB", size, colour).save(file)
    return made


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_is_answered_as_its_pictures_are_one_by_one_and_chance_is_left_alone(name, folders, files):
    before = torch.random.get_rng_state()
    asked = CaptionModel(str(folders[name]), MUG)
    answers = asked.said(files)
    assert torch.equal(before, torch.random.get_rng_state())
    assert asked.prompt == PROMPTS[name] and len(answers) == 3
    assert answers == [asked.said([file])[0] for file in files]
    assert not any("Describe" in one or "assistant" in one or "<" in one for one in answers)
    assert len(asked(files)) == 3


def test_the_prompt_is_what_is_asked(folders, files):
    asked = CaptionModel(str(folders["qwen2_vl"]), MUG, prompt="Name it.")
    inputs = asked._inputs([model._reduced(file) for file in files])
    texts = asked.processor.tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True)
    assert texts == ["user:Name it.assistant:"] * 3
    assert inputs["input_ids"].shape[0] == 3 and (inputs["attention_mask"][:, -1] == 1).all()


@pytest.mark.parametrize("name", MODELS)
def test_pictures_come_in_the_models_number_format(name, folders, files):
    asked = CaptionModel(str(folders[name]), MUG)
    assert asked.model.dtype == (torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    asked.model.to(torch.bfloat16)
    assert asked._inputs([model._reduced(files[0])])["pixel_values"].dtype == torch.bfloat16
    assert len(asked.said(files)) == 3


def test_only_a_repeated_prompt_is_cut_off():
    tokens, prompt = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[5, 6]])
    assert model.without_prompt(tokens, prompt).tolist() == [[7, 8]]
    assert model.without_prompt(tokens, torch.tensor([[9, 6]])).tolist() == [[5, 6, 7, 8]]
    assert model.without_prompt(tokens, None).tolist() == [[5, 6, 7, 8]]


def test_answers_are_cleaned_and_nonsense_is_refused_and_counted(folders, files, monkeypatch):
    said = {"IMG_0": "A red mug on a table.", "IMG_1": "a mug a mug a mug a mug a mug", "IMG_2": "I'm sorry, no."}
    monkeypatch.setattr(CaptionModel, "said", lambda self, some: [said[file.stem] for file in some])
    choice = CaptionerChoice(with_model=str(folders["blip"]))
    done = unheard(caption_dataset(files[0].parent, MUG, choice.make))
    assert done.captions == {"IMG_0.png": "a sks mug on a table"}
    assert [one.reason for one in done.refused] == ["repeats itself", "refuses"]


def test_a_long_side_is_reduced(tmp_path):
    Image.new("RGB", (3000, 1500)).save(tmp_path / "wide.png")
    assert model._reduced(tmp_path / "wide.png").size == (1024, 512)


def test_a_model_that_is_not_there_is_told(tmp_path, monkeypatch):
    with pytest.raises(BaseError, match="there is no folder"):
        CaptionModel(str(tmp_path / "nowhere"), MUG)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BaseError, match="the hub cannot be reached"):
        CaptionModel("nobody/no-such-captioner", MUG)


@pytest.mark.parametrize(
    "files_of, why",
    [
        ({}, "cannot read .*config.json"),
        ({"config.json": "[]"}, "config.json is a list, not a JSON object"),
        ({"config.json": '{"model_type": "clip"}'}, "not a supported captioning model: its type is clip"),
        ({"config.json": '{"model_type": "mine", "auto_map": {"AutoConfig": "x.Y"}}'}, "its type is mine"),
        ({"config.json": '{"model_type": "blip"}', "pytorch_model.bin": "x"}, r"pickled weights only \(pytorch_model"),
        ({"config.json": '{"model_type": "blip"}'}, "holds no weights"),
        ({"config.json": '{"model_type": "blip"}', "model.safetensors": "x"}, "cannot be loaded as a BlipProcessor"),
    ],
)
def test_a_folder_that_is_no_captioner_is_told(files_of, why, tmp_path):
    for name, text in files_of.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(BaseError, match=why) as told:
        CaptionModel(str(tmp_path), MUG)
    assert told.value.hint


def test_weights_of_another_size_are_told(tmp_path):
    captioners.blip(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = torch.random.get_rng_state()
    with pytest.raises(BaseError, match="of the model's tensors are missing"):
        CaptionModel(str(tmp_path), MUG)
    assert torch.equal(before, torch.random.get_rng_state()), "missing tensors are drawn, from chance of their own"


def test_a_model_of_two_parts_takes_no_prompt(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vision-encoder-decoder"}')
    (tmp_path / "model.safetensors").write_text("x")
    with pytest.raises(DataError, match="takes no prompt"):
        CaptionModel(str(tmp_path), MUG, prompt="what?")


@pytest.mark.parametrize(
    "choice, why",
    [
        (CaptionerChoice(with_model="m", vocabulary="pocket"), "more than one captioner"),
        (CaptionerChoice(with_model="m", command="x {image}"), "more than one captioner"),
        (CaptionerChoice(vocabulary="pocket", prompt="what?"), "`prompt` has no effect without"),
        (CaptionerChoice(), "no captioner"),
    ],
)
def test_one_captioner_is_chosen(choice, why):
    with pytest.raises(InputError, match=why):
        choice.check()


def test_a_name_alone_says_which_captioner(tmp_path):
    (tmp_path / "words.txt").write_text("")
    assert CaptionerChoice.of("pocket").vocabulary == "pocket"
    assert CaptionerChoice.of(str(tmp_path / "words.txt")).vocabulary
    assert CaptionerChoice.of(str(tmp_path)).with_model and CaptionerChoice.of("org/name").with_model
