"""The verdict, by scores made by hand: when it was learnt, in what words it is told, and the likeliest cause first."""

import dataclasses
from pathlib import Path

import pytest
import torch

from finetune import resources as shipped
from finetune.data.dataset import read_dataset
from finetune.data.example import Dataset
from finetune.evaluation.prompts import Aim, prompt_set
from finetune.evaluation.scores import Likeness
from finetune.evaluation.verdict import Measures, Training, judge, not_learnt
from finetune.events import CaptionFit, Evaluated, Score, TrainingEffect

FILE = Path("mug.safetensors")
GOOD = TrainingEffect(1.0, 0.5, CaptionFit(0.9, 0.17), CaptionFit(1.0, 0.17), {"unet": 0.05}, 0.5)


def around(value: float, half: float = 0.05) -> Score:
    return Score(value, value - half, value + half)


def measures(
    *each: float, base: float = 0.2, half: float = 0.05, base_prompt: float = 1.0, **scores: float
) -> Measures:
    """likeness of each picture; prompt=None: not scored"""
    found = {"prompt": 0.9, "drift": 0.03, "diversity": 1.0, "memorisation": 0.0} | scores
    likeness = Likeness(around(sum(each) / len(each), half), torch.tensor(each), base, 0.8)
    told = {name: around(value) for name, value in found.items() if value is not None}
    return Measures(likeness, {"likeness": likeness.score, **told}, base_prompt)


def data(aim: Aim = "product", captions: list[str] | None = None) -> Dataset:
    found = read_dataset(shipped.data_path(Path(f"example:{aim}")))
    if captions is None:
        return found
    some = tuple(e._replace(caption=captions[i % len(captions)]) for i, e in enumerate(found.examples))
    return dataclasses.replace(found, examples=some)


def told(found: Measures, aim: Aim = "product", captions: list[str] | None = None, **known: object) -> Evaluated:
    pictures = data(aim, captions)
    count = len(found.to_real.each)
    usual = {"visits": 100.0, "components": ("denoiser", "text_encoder"), "learning_rate": 1e-3, "effect": GOOD}
    training = Training(pictures, **{**usual, **known})  # type: ignore[arg-type]
    return judge(FILE, prompt_set(pictures, True, count), found, training)


SEEN, UNSEEN = measures(*[0.93] * 9, 0.3), measures(*[0.05] * 10)


def test_what_was_learnt_is_told_in_one_plain_sentence():
    verdict = told(measures(*[0.95] * 9, 0.45))
    assert verdict.learnt and verdict.seen == "9/10" and not verdict.reasons
    assert verdict.text == (
        "the product is seen in 9 of 10 prompts; as like its pictures as they are to each other (0.90); "
        "the setting asked for is there in 9 of 10; other prompts are unchanged"
    )
    assert verdict.path == FILE and verdict.scores["drift"].value == 0.03


def test_pictures_no_nearer_than_the_bases_are_not_learnt_and_say_so():
    verdict = told(UNSEEN)
    assert not verdict.learnt and verdict.seen == "0/10"
    assert "no nearer to its pictures than the base's are (0.05)" in verdict.text


@pytest.mark.parametrize("aim, each, learnt", [("product", 0.6, True), ("product", 0.45, False), ("style", 0.6, False),
                                               ("style", 0.85, True)])  # fmt: skip
def test_a_picture_shows_a_style_from_a_higher_likeness_on_than_a_product(aim, each, learnt):
    assert told(measures(*[each] * 10), aim).learnt is learnt


@pytest.mark.parametrize("seen, learnt", [(7, True), (6, False)])
def test_it_must_be_seen_in_seven_of_ten_prompts(seen, learnt):
    assert told(measures(*[0.9] * seen, *[0.3] * (10 - seen))).learnt is learnt


def test_a_likeness_that_may_be_chance_is_not_enough():
    assert told(measures(*[0.6] * 10, half=0.45)).learnt
    assert not told(measures(*[0.6] * 10, half=0.55)).learnt


def test_prompts_that_are_no_longer_followed_are_not_learnt_but_the_bases_own_failures_are_not_held_against_it():
    verdict = told(measures(*[0.9] * 10, prompt=0.3))
    assert not verdict.learnt and "prompts are followed in 30%" in verdict.reasons[0]
    assert told(measures(*[0.9] * 10, prompt=0.3, base_prompt=0.4)).learnt
    assert told(measures(*[0.9] * 10, prompt=None)).learnt


def test_a_base_that_lost_what_it_knew_is_not_learnt_and_a_little_drift_is_told():
    broken = told(measures(*[0.9] * 10, drift=0.7))
    assert not broken.learnt and "other prompts show other things than before (0.70)" in broken.text
    some = told(measures(*[0.9] * 10, drift=0.3))
    assert some.learnt and "other prompts have changed a little (0.30)" in some.text
    assert some.reasons and "prior.mode" in some.reasons[0]


def test_captions_that_the_base_finds_mixed_up_are_not_learnt_unless_prompts_are_surely_followed():
    blind = GOOD._replace(base_fit=CaptionFit(0.17, 0.17))
    found = measures(*[0.9] * 10, prompt=None)
    verdict = told(found, "style", effect=blind)
    assert not verdict.learnt and "mixed up" in verdict.reasons[0]
    assert told(found, "style").learnt and not told(found, "product", effect=blind).learnt
    assert not told(measures(*[0.9] * 10, prompt=0.6), effect=blind).learnt
    assert told(measures(*[0.9] * 10, prompt=0.8), effect=blind).learnt  # captions may say too little
    assert told(measures(*[0.9] * 10, prompt=0.5, base_prompt=0.6), effect=blind).learnt  # of what the base shows
    assert told(measures(*[0.9] * 10, prompt=0.6)).learnt
    assert told(measures(*[0.9] * 10, prompt=None), effect=GOOD._replace(base_fit=CaptionFit(0.34, 0.17))).learnt


def test_copies_are_named():
    assert any("repeat training pictures" in r for r in told(measures(*[0.9] * 10, memorisation=0.8)).reasons)


def test_held_out_pictures_are_told_and_named_when_they_are_predicted_worse():
    better, worse = {"held_out_0.5": Score(0.7, 0.6, 0.8)}, {"held_out_0.5": Score(1.3, 1.1, 1.5)}
    assert told(SEEN, held_out=better).scores["held_out_0.5"].value == 0.7 and not told(SEEN, held_out=better).reasons
    assert "predicted worse than by the base (held_out_0.5)" in told(SEEN, held_out=worse).reasons[0]


CAUSES = {
    "equal captions": (UNSEEN, {"captions": ["a photo of sks cup"]}, "all 6 captions are the same"),
    "no trigger": (UNSEEN, {"captions": ["a cup on red", "a cup on blue"]}, "0 of 6 captions have the trigger 'sks'"),
    "wording": (UNSEEN, {"captions": ["sks, 1girl", "sks, solo"]}, "share no wording with the captions"),
    "too few steps": (UNSEEN, {"visits": 12.0}, "each picture was shown 12 times"),
    "a fifth of the steps": (UNSEEN, {"visits": 40.0}, "each picture was shown 40 times"),
    "text encoder": (UNSEEN, {"components": ("denoiser",)}, "the text encoder was not trained"),
    "rate too low": (UNSEEN, {"effect": GOOD._replace(output=0.01)}, "raise optimizer.learning_rate (it is 0.001)"),
    "rate too high": (UNSEEN, {"effect": GOOD._replace(adapted=1.2)}, "lower optimizer.learning_rate"),
    "a blind judge": (measures(*[0.05] * 10, base=0.78), {}, "name another one, evaluate.judge"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_cause_comes_first_and_is_not_named_where_it_is_not(cause):
    found, known, sentence = CAUSES[cause]
    reasons = told(found, **known).reasons  # type: ignore[arg-type]
    assert sentence in reasons[0], reasons
    assert sentence not in " ".join(told(UNSEEN).reasons) and sentence not in " ".join(told(SEEN).reasons)


def test_of_several_causes_captions_come_before_length_and_length_before_the_text_encoder():
    reasons = told(UNSEEN, captions=["a photo of sks cup"], visits=5.0, components=("denoiser",)).reasons
    at = [
        next(i for i, r in enumerate(reasons) if word in r)
        for word in ("captions are the same", "was shown", "encoder")
    ]
    assert at == sorted(at)


def test_what_is_not_known_of_the_training_names_no_cause():
    assert told(UNSEEN, visits=None, components=(), learning_rate=None, effect=None).reasons == ()


def test_as_an_error_it_has_exit_code_4_says_what_is_kept_and_what_to_do():
    error = not_learnt(told(UNSEEN, visits=12.0))
    assert error.exit_code == 4 and "not learnt: the product is seen in 0 of 10 prompts" in error.problem
    assert str(FILE) in error.problem and "more train.steps" in error.hint
    assert not_learnt(told(UNSEEN)).hint == "look at the pictures"
