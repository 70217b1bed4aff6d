"""Scores of pictures, by features made by hand: each at the ends of its scale, between them, and its interval."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.evaluation import scores
from finetune.events import Score


def turned(*degrees: float) -> Tensor:
    """(n, 2): unit rows at these angles."""
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


REAL = turned(-20, 20, 0, 10)
FAR = turned(80, 90, 100)


def test_likeness_is_0_for_the_bases_pictures_and_1_for_the_training_pictures_own():
    assert scores.likeness_score(FAR, FAR, REAL).score.value == pytest.approx(0)
    # one picture whose mean likeness is what the real ones' is
    found = scores.likeness_score(REAL, FAR[:1].expand(4, 2), REAL)
    own = (16 * float(REAL.mean(0).square().sum()) - 4) / 12
    assert found.real == pytest.approx(own) and found.base == pytest.approx(float((FAR[:1] @ REAL.T).mean()))
    at_one = turned(math.degrees(math.acos(own / float(REAL.mean(0).norm()))) + 2.5)
    assert float(scores.likeness_score(at_one, FAR[:1], REAL).each) == pytest.approx(1, abs=0.01)


def test_likeness_is_told_for_each_picture_and_they_average_to_the_score():
    found = scores.likeness_score(torch.cat([turned(0), FAR[1:]]), FAR, REAL)
    assert found.each[0] > 1 and found.each[1:].max() < 0.2
    assert float(found.each.mean()) == pytest.approx(found.score.value)


def test_an_interval_holds_its_value_narrows_with_more_pictures_and_is_the_same_again():
    few = scores.likeness_score(turned(0, 40, 80), FAR, REAL).score
    many = scores.likeness_score(turned(*[0, 40, 80] * 20), FAR.repeat(20, 1), REAL).score
    assert few.low < few.value < few.high and few.high - few.low > 2 * (many.high - many.low) > 0
    assert few == scores.likeness_score(turned(0, 40, 80), FAR, REAL).score


def test_pictures_are_compared_with_the_bases_at_the_same_seed():
    # each a little nearer than its own: sure, however far the seeds lie apart
    base = turned(90, 60, 30)
    found = scores.likeness_score(turned(85, 55, 25), base, REAL).score
    assert found.low > 0
    unpaired = scores.likeness_score(turned(25, 85, 55), base, REAL).score
    assert unpaired.low < 0 and unpaired.value == pytest.approx(found.value)


def test_a_judge_that_sees_no_difference_is_blind_and_its_scale_does_not_explode():
    assert scores.likeness_score(FAR, REAL, REAL).blind and not scores.likeness_score(FAR, FAR, REAL).blind
    assert abs(scores.likeness_score(turned(0), turned(1), turned(1, 1)).score.value) < 0.1


def test_prompt_is_the_share_that_fits_its_own_caption_best():
    captions = turned(0, 30, 60, 90)
    assert scores.prompt_score(turned(1, 31, 61, 91), captions).value == 1
    assert scores.prompt_score(turned(1, 31, 91, 61), captions).value == 0.5
    assert scores.prompt_score(turned(1, 2), turned(0, 0)).value == 1  # of equal captions neither is wrong


def test_drift_is_0_where_nothing_changed_and_1_where_pictures_are_as_far_as_another_prompts():
    base = turned(0, 60)  # half of the similarity is lost from one to the other
    assert scores.drift_score(base, base).value == pytest.approx(0, abs=1e-6)
    assert scores.drift_score(base.flip(0), base).value == pytest.approx(1, abs=1e-6)
    assert 0 < scores.drift_score(turned(10, 50), base).value < 0.1


def test_diversity_is_0_of_equal_pictures_and_1_of_some_as_unlike_as_the_real_ones():
    assert scores.diversity_score(turned(5, 5, 5), REAL).value == pytest.approx(0, abs=1e-5)
    assert scores.diversity_score(REAL, REAL).value == pytest.approx(1)
    half = scores.diversity_score(REAL, REAL)
    assert half.low < 1 < half.high  # not drawn towards 0 by pictures that are drawn twice


def test_memorisation_is_1_of_copies_also_of_mirrored_ones_and_0_of_what_is_no_nearer_than_real_ones():
    real = F.normalize(torch.eye(4)[:3] + 0.3, dim=1)
    mirrored = F.normalize(torch.eye(8)[4:7, :4] + torch.tensor([0.0, 0, 0, 1]), dim=1)
    views = torch.stack([real, mirrored])
    assert scores.memorisation_score(real[:2], real, views).value == pytest.approx(1)
    assert scores.memorisation_score(mirrored[:1], real, views).value == pytest.approx(1)
    assert scores.memorisation_score(mirrored[:1], real, views[:1]).value < 0.5
    far = F.normalize(torch.tensor([[-1.0, -1, -1, 1]]), dim=1)
    assert scores.memorisation_score(far, real, views[:1]) == Score(0, 0, 0)


def test_a_loss_is_told_as_a_share_of_the_bases_on_the_same_images():
    base = torch.tensor([1.0, 4.0, 9.0])
    found = scores.loss_score(base / 2, base)
    assert found == pytest.approx(Score(0.5, 0.5, 0.5))  # each halved: nothing is left to chance
    assert scores.loss_score(torch.tensor([2.0, 4, 9]), base).value == pytest.approx(15 / 14)


def test_one_picture_has_an_interval_of_no_width():
    assert scores.bootstrap(lambda rows: torch.tensor([3.0], dtype=torch.float64)[rows].mean(1), 1) == Score(3, 3, 3)
