"""The bundled base and eyes: small, whole, readable by others, and they learnt their pictures' domain."""

import json
from pathlib import Path

import icons
import pytest
import styles
from drawn import draw, prompt
from PIL import Image
from referee.classifier import Verdict
from referee.classifier import judge as referee
from safetensors import safe_open
from transformers import CLIPTokenizer

from finetune import families
from finetune import resources as shipped
from finetune.evaluation.similarity import FeatureExtractor, clip_t
from finetune.sampling.session import Session

MEGABYTE = 1_000_000
ASKED = icons.held_out_pairs()[::26]
"""a dozen (object, colour) pairs that training never showed"""


def names(file: Path) -> dict[str, str]:
    """tensor -> dtype"""
    with safe_open(file, "pt") as opened:
        return {key: opened.get_slice(key).get_dtype() for key in opened.keys()}


def test_both_are_small_and_in_half_precision() -> None:
    for folder, limit in ((shipped.POCKET, 40), (shipped.EYES, 12)):
        files = [p for p in folder.rglob("*") if p.is_file()]
        assert sum(p.stat().st_size for p in files) <= limit * MEGABYTE
        weights = [p for p in files if p.suffix == ".safetensors"]
        assert weights and {dtype for p in weights for dtype in names(p).values()} == {"F16"}
        assert not [p for p in files if p.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


def test_no_file_says_where_it_was_made() -> None:
    for folder in (shipped.POCKET, shipped.EYES):
        for file in folder.rglob("*.json"):
            text = file.read_text(encoding="utf-8")
            assert "_name_or_path" not in text and "/home/" not in text and "/opt/" not in text, file


def test_the_text_encoder_has_the_names_that_every_reader_knows() -> None:
    found = names(shipped.POCKET / "text_encoder" / "model.safetensors")
    assert found and all(name.startswith("text_model.") for name in found)


def test_older_readers_get_the_same_tokens_from_vocab_and_merges(tmp_path: Path) -> None:
    whole = CLIPTokenizer.from_pretrained(shipped.POCKET / "tokenizer")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((shipped.POCKET / "tokenizer" / name).read_bytes())
    parts = CLIPTokenizer.from_pretrained(tmp_path)
    captions = ["a sks cup in the cafe, xyz style", *(icons.scene("tokens", i).caption for i in range(200))]
    captions += [styles.flat("tokens", i).caption for i in range(200)]
    assert whole(captions).input_ids == parts(captions).input_ids
    assert max(map(len, whole(captions).input_ids)) <= whole.model_max_length


def test_the_base_and_the_eyes_read_alike() -> None:
    read = [(folder / "vocab.json").read_text() for folder in (shipped.POCKET / "tokenizer", shipped.EYES)]
    assert read[0] == read[1]
    text = json.loads((shipped.EYES / "config.json").read_text())["text_config"]
    own = json.loads((shipped.POCKET / "text_encoder" / "config.json").read_text())
    assert {k: own[k] for k in ("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings")} == {
        k: text[k] for k in ("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings")
    }


@pytest.fixture(scope="module")
def painted() -> list[Image.Image]:
    return draw(Session(families.load("pocket")), [prompt(*pair) for pair in ASKED], range(len(ASKED)))


@pytest.fixture(scope="module")
def verdicts(painted: list[Image.Image]) -> list[Verdict]:
    return referee(painted)


def test_objects_stand_on_backgrounds_that_training_never_put_them_on(verdicts: list[Verdict]) -> None:
    named = [v.object == name for v, (name, _) in zip(verdicts, ASKED, strict=True)]
    behind = [v.background == colour for v, (_, colour) in zip(verdicts, ASKED, strict=True)]
    assert sum(named) >= 9 and sum(behind) >= 11, [(v.object, v.background) for v in verdicts]


def test_the_referee_would_notice_other_pictures(verdicts: list[Verdict]) -> None:
    others = ASKED[1:] + ASKED[:1]
    assert sum(v.object == name for v, (name, _) in zip(verdicts, others, strict=True)) == 0


def test_the_eyes_find_the_caption_that_a_picture_was_painted_from(painted: list[Image.Image]) -> None:
    eyes = FeatureExtractor.load(shipped.EYES)
    pictures, captions = eyes.of_pictures(painted), eyes.of_captions([prompt(*pair) for pair in ASKED])
    best = (pictures @ captions.T).argmax(1).tolist()
    assert sum(b == i for i, b in enumerate(best)) >= 9
    assert clip_t(pictures, captions) > clip_t(pictures, captions.roll(1, 0)) + 0.3


def test_a_word_nobody_has_read_leaves_the_picture_alone() -> None:
    asked = [prompt(f"sks {name}", colour) for name, colour in ASKED]
    found = referee(draw(Session(families.load("pocket")), asked, range(len(asked))))
    assert sum(v.object == name for v, (name, _) in zip(found, ASKED, strict=True)) >= 8
