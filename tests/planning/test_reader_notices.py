"""A plan says which programs would not read all of what it trains."""

import pytest

from finetune import families
from finetune.planning.readers import reader_notices
from finetune.recipe import Recipe


def notices(family: str, **adapter: object) -> list[str]:
    recipe = Recipe(base="org/base", data={"path": "photos"}, adapter=adapter)
    return reader_notices(families.family_class(family), recipe.adapter)


def test_modules_that_comfyui_passes_over_are_said_before_they_are_trained() -> None:
    [notice] = notices("flux2", targets="all")
    assert "ComfyUI passes over 3 of the modules" in notice and "whole in diffusers only" in notice
    [notice] = notices("flux2", targets=["attn.to_q", "single_stream_modulation.linear"])
    assert "passes over 1 of the modules" in notice
    [notice] = notices("sd", targets=["conv_in"])
    assert notice.startswith("kohya passes over 1") and "LyCORIS" in notice


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("targets", ["attention", "attention+ff", "all"])
def test_no_other_preset_has_such_modules(family: str, targets: str) -> None:
    assert bool(notices(family, targets=targets)) == (family == "flux2" and targets == "all")


def test_full_fine_tuning_has_no_adapter_to_be_read() -> None:
    assert notices("flux2", method="full") == []
