"""`benchmarks/masks.py`: its pictures and masks belong together, and its bars can be missed."""

from pathlib import Path

import masks
import numpy as np
import pytest
from learns import Measures
from masks import Trial
from PIL import Image

from finetune.data.audit import audit


def test_each_picture_is_drawn_with_its_mask_on_one_background(tmp_path: Path) -> None:
    masks.draw("handbag", tmp_path)
    report = audit(tmp_path, trigger="sks", class_word="handbag")
    assert len(report.used) == report.masked == 6 and not report.problems and not report.rejected
    grounds = set()
    for example in report.used:
        assert example.mask
        shown, mask = (np.asarray(Image.open(path)) for path in (example.path, example.mask.path))
        outside = shown[mask == 0].astype(int)
        assert np.abs(outside - outside.mean(0)).max() < 30 and 0.1 < (mask > 127).mean() < 0.6
        grounds.add(tuple((outside.mean(0) / 8).round().astype(int)))
    assert len(grounds) == 1


@pytest.mark.parametrize(("plain", "masked", "held"), [(0.5, 0.9, [True, True]), (0.7, 0.9, [False, True])])
def test_the_bar_of_the_background_can_be_missed(plain: float, masked: float, held: list[bool]) -> None:
    found = {Trial("handbag", "no masks", seed): Measures(fidelity=1.0, prompt=plain) for seed in (0, 1)}
    found |= {Trial("handbag", "masked", seed): Measures(fidelity=0.97, prompt=masked) for seed in (0, 1)}
    assert [one for _, one in masks.bars("handbag", found)] == held
    less = {trial: measures._replace(fidelity=0.9) for trial, measures in found.items() if trial.way == "masked"}
    assert not masks.bars("handbag", found | less)[1][1]
    assert masks.bars("lamp", found) == []
