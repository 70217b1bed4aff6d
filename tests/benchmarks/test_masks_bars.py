"""`benchmarks/masks.py`: its pictures and masks belong together, and its bars can be missed."""

from pathlib import Path

import masks
import numpy as np
import pytest
from masks import Looked, Trial
from PIL import Image

from finetune.data.audit import audit


def test_each_picture_is_drawn_with_its_mask_on_one_background(tmp_path: Path) -> None:
    masks.draw("handbag", "plain", tmp_path)
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


def test_a_checked_cloth_is_told_from_a_plain_ground(tmp_path: Path) -> None:
    for ground in ("plain", "checked"):
        folder = tmp_path / ground
        folder.mkdir()
        masks.draw("handbag", ground, folder)
        pictures = [Image.open(file) for file in folder.iterdir() if "mask" not in file.name]
        assert [masks.is_checked(one) for one in pictures] == 6 * [ground == "checked"]


GOOD = Looked(product=0.97, asked=0.9, unasked=0.1)
PLAIN = Looked(product=1.0, asked=0.5, unasked=0.8)


@pytest.mark.parametrize(
    ("missed", "changed"), [(0, {"asked": 0.7}), (1, {"unasked": 0.6}), (2, {"product": 0.9}), (None, {})]
)
def test_each_bar_can_be_missed(missed: int | None, changed: dict[str, float]) -> None:
    found = {Trial("handbag", "plain", "no masks", seed): PLAIN for seed in (0, 1)}
    found |= {Trial("handbag", "plain", "masked", seed): GOOD._replace(**changed) for seed in (0, 1)}
    held = [one for _, one in masks.bars("handbag", found)]
    assert held == [number != missed for number in range(3)]
    assert masks.bars("lamp", found) == []
