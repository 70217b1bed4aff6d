"""What a base says of itself, and what it does not: absence proves nothing, and nothing is passed over."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.bench import bench, settled
from support.spoilt_bases import header_only, refusal

from finetune import families
from finetune.errors import BaseError, RecipeError
from finetune.families import single_file
from finetune.families.base import BaseInfo
from finetune.files.metadata import About
from finetune.sampling.request import AdapterWeight, SessionOptions
from finetune.sampling.session import Session

# -- what it predicts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["sd1", "sd2", "sdxl"])
def test_a_file_that_does_not_say_has_not_said_epsilon_and_the_recipes_word_counts(
    line: str, data: Path, tmp_path: Path
) -> None:
    file = header_only(tmp_path / "silent.safetensors", line=line)
    facts = families.detect(str(file))
    assert not facts.prediction_known and "does not say what it predicts, likely epsilon" in facts.described()
    for word in ("epsilon", "v"):
        plan = settled(file, data, objective__prediction=word)
        assert (plan.facts.prediction, plan.facts.prediction_known) == (word, True)
        assert plan.recipe.objective.prediction == word and "the recipe" in plan.facts.evidence
    with pytest.raises(RecipeError, match="flow"):
        settled(file, data, objective__prediction="flow")


SAID = {
    "v_pred key": ({"extra": ("v_pred",)}, "v"),
    "modelspec.prediction_type 'epsilon'": ({"metadata": {"modelspec.prediction_type": "epsilon"}}, "epsilon"),
    "modelspec.predict_key 'v'": ({"metadata": {"modelspec.predict_key": "v"}}, "v"),
}


@pytest.mark.parametrize("where", SAID)
def test_what_a_file_says_and_the_recipe_contradicts_is_refused_and_both_are_named(
    where: str, data: Path, tmp_path: Path
) -> None:
    said, prediction = SAID[where]
    file = header_only(tmp_path / "said.safetensors", *said.get("extra", ()), metadata=said.get("metadata"))
    assert settled(file, data, objective__prediction=prediction).facts.prediction == prediction
    other = {"v": "epsilon", "epsilon": "v"}[prediction]
    with pytest.raises(RecipeError) as raised:
        settled(file, data, objective__prediction=other)
    assert f"objective.prediction = {other}" in raised.value.problem and where in raised.value.problem


@pytest.mark.parametrize("said", ["x0", "sample", "flow", "edm"])
def test_a_file_that_predicts_something_else_is_refused_with_its_word(said: str, tmp_path: Path) -> None:
    file = header_only(tmp_path / "other.safetensors", metadata={"modelspec.prediction_type": said})
    assert f"predicts {said!r} by its modelspec.prediction_type" in refusal(file)


def test_a_folder_that_does_not_say_is_epsilon_for_diffusers_and_the_recipes_word_counts(
    folder: Callable[..., Path], data: Path
) -> None:
    for null in (None, "(left out)"):
        base = folder("sd15", f"silent {null}", scheduler={"prediction_type": null})
        facts = families.detect(str(base))
        assert (facts.prediction, facts.prediction_known) == ("epsilon", False) and "names no" in facts.evidence
        loaded = families.load(str(base)).facts
        assert (loaded.prediction, loaded.prediction_known) == ("epsilon", True) and "default" in loaded.evidence
        assert bench(base, data, objective__prediction="v").family.process.prediction == "v"


def test_a_folder_that_says_is_held_against_the_recipe(kept: dict[str, Path], data: Path) -> None:
    with pytest.raises(RecipeError, match=r"objective.prediction = epsilon, but .* predicts v .*scheduler_config.json"):
        settled(kept["sd21"], data, objective__prediction="epsilon")


def test_where_nobody_knows_nothing_is_trained_or_drawn_by_a_guess(silent: Path, data: Path) -> None:
    with pytest.raises(BaseError, match="does not say whether it predicts epsilon or v, and a forward pass") as raised:
        bench(silent, data)
    assert "objective.prediction" in raised.value.hint
    with pytest.raises(BaseError, match="a forward pass cannot tell"):
        Session.open(str(silent), ["a cup"])


def test_whoever_knows_is_believed_in_training_and_in_pictures(
    silent: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench(silent, data, objective__prediction="v")
    assert b.family.process.prediction == "v" and b.plan.recipe.objective.prediction == "v" and b.train()
    assert Session.open(str(silent), [""], options=SessionOptions(prediction="v")).family.process.prediction == "v"
    save_file({}, tmp_path / "mine.safetensors", {"finetune.prediction": "v"})
    monkeypatch.setattr(Session, "load_adapters", lambda *_: None)
    session = Session.open(str(silent), [""], [AdapterWeight(tmp_path / "mine.safetensors")])
    assert session.family.process.prediction == "v"
    assert session.pipeline.scheduler.config.prediction_type == "v_prediction"
    assert About.__dataclass_fields__["prediction"]  # what files of ours say it in


def test_a_forward_pass_settles_it_for_the_run_and_its_recipe(
    silent: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_file, "probe_prediction", lambda unet: "v")
    b = bench(silent, data)
    assert b.plan.facts.prediction_known and b.plan.recipe.objective.prediction == b.family.process.prediction == "v"
    assert "a forward pass" in b.plan.facts.evidence


# -- zero terminal SNR ------------------------------------------------------------------------------------------------


def test_a_ztsnr_key_alone_is_honoured_and_contradicts_epsilon(silent: Path, data: Path) -> None:
    save_file(load_file(silent) | {"ztsnr": torch.zeros(0)}, silent)
    facts = families.detect(str(silent))
    assert (facts.prediction, facts.prediction_known, facts.zero_snr) == ("v", False, True)
    assert "ztsnr key" in facts.evidence
    b = bench(silent, data, objective__prediction="v")
    assert float(b.family.process.path.scales(torch.tensor([999]))[0]) == 0.0
    assert float(b.family.pipeline().scheduler.alphas_cumprod[-1]) < 1e-6
    with pytest.raises(RecipeError, match="ends in pure noise, where epsilon says nothing"):
        settled(silent, data, objective__prediction="epsilon")


def test_a_forward_pass_that_says_epsilon_contradicts_a_ztsnr_key(
    silent: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(load_file(silent) | {"ztsnr": torch.zeros(0)}, silent)
    monkeypatch.setattr(single_file, "probe_prediction", lambda unet: "epsilon")
    with pytest.raises(BaseError, match=r"ends in pure noise .* and predicts epsilon"):
        bench(silent, data)


@pytest.mark.parametrize("last", [0.0, 0.0047])
def test_a_schedule_in_the_file_says_whether_it_ends_in_noise(last: float, tmp_path: Path) -> None:
    table = torch.linspace(0.999, last, 1000)
    file = header_only(tmp_path / "scheduled.safetensors", "v_pred", alphas_cumprod=table)
    assert families.detect(str(file)).zero_snr == (last == 0.0)


def test_a_file_that_predicts_epsilon_and_ends_in_noise_is_refused(tmp_path: Path) -> None:
    said = {"modelspec.prediction_type": "epsilon"}
    assert "ztsnr" in refusal(header_only(tmp_path / "blind.safetensors", "ztsnr", metadata=said))


def test_a_folder_that_predicts_epsilon_and_ends_in_noise_is_refused(folder: Callable[..., Path]) -> None:
    base = folder("sd15", scheduler={"rescale_betas_zero_snr": True})
    assert "ends in pure noise" in refusal(base)


# -- EDM and other paths ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["edm_vpred.sigma_max", "edm_vpred.sigma_min", "edm_mean", "edm_std"])
def test_a_file_of_an_edm_base_is_refused_by_its_key(key: str, tmp_path: Path) -> None:
    assert f"an EDM base, as CosXL and Playground v2.5 are (its {key} key)" in refusal(
        header_only(tmp_path / "cosxl.safetensors", key)
    )


@pytest.mark.parametrize(
    "name",
    ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "MyScheduler", None],
)
def test_a_scheduler_of_another_path_is_refused_by_its_name(folder: Callable[..., Path], name: str | None) -> None:
    base = folder("sdxl", scheduler={"_class_name": name})
    assert f"{name} is no scheduler of a beta table" in refusal(base)


@pytest.mark.parametrize(
    "changes", [{"num_train_timesteps": 10**9}, {"num_train_timesteps": 0}, {"beta_end": 1.5}, {"beta_start": -0.1},
                {"beta_end": float("nan")}, {"trained_betas": []}, {"trained_betas": [[0.1, 0.2]]},
                {"trained_betas": [0.1, None]}, {"trained_betas": [0.1, "x"]}, {"trained_betas": 5}],
)  # fmt: skip
def test_a_table_that_is_none_is_refused_before_it_is_loaded(
    folder: Callable[..., Path], changes: dict[str, object]
) -> None:
    assert "scheduler_config.json" in refusal(folder("sd15", scheduler=changes))


# -- distilled --------------------------------------------------------------------------------------------------------

TRAILING = {"timestep_spacing": "trailing", "prediction_type": "epsilon"}
DISTILLED = {
    "sd-turbo": ("sd21", {"_class_name": "EulerDiscreteScheduler"} | TRAILING, {}),
    "sdxl-turbo": ("sdxl", {"_class_name": "EulerAncestralDiscreteScheduler"} | TRAILING, {}),
    "lcm": ("sd15", {"_class_name": "LCMScheduler"}, {}),
    "tcd": ("sdxl", {"_class_name": "TCDScheduler"}, {}),
    "by the name inside": ("sdxl", {}, {"_name_or_path": "ByteDance/SDXL-Lightning"}),
}


@pytest.mark.parametrize("name", DISTILLED)
def test_a_distilled_base_asks_for_a_word(name: str, folder: Callable[..., Path], data: Path) -> None:
    line, scheduler, index = DISTILLED[name]
    base = folder(line, scheduler=scheduler, index=index)
    with pytest.raises(RecipeError, match="is distilled: few steps") as raised:
        settled(base, data)
    assert "objective.distilled = true" in raised.value.hint
    assert settled(base, data, objective__distilled=True).facts.distilled


@pytest.mark.parametrize(
    ("called", "is_distilled"),
    [("sd_xl_turbo_1.0", True), ("DreamShaperXL_Lightning", True), ("sd3.5-large-turbo", True), ("sdxl-dmd2", True),
     ("Hyper-SDXL-1step", True), ("LCM_Dreamshaper_v7", True), ("flux-schnell-dedistilled", False),
     ("turbovision", False), ("my_base", False), ("lightningbolt-style", False)],
)  # fmt: skip
def test_a_name_tells_a_distilled_file(called: str, is_distilled: bool, tmp_path: Path) -> None:
    file = header_only(tmp_path / f"{called}.safetensors", metadata={"modelspec.prediction_type": "epsilon"})
    assert (f"it is called {called}" in families.detect(str(file)).distilled) == is_distilled


def test_trailing_timesteps_of_a_base_that_ends_in_noise_are_no_sign(folder: Callable[..., Path]) -> None:
    euler = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    assert families.detect(str(folder("sd21", scheduler=euler))).distilled == ""


def test_facts_speak_of_what_is_not_known() -> None:
    info = BaseInfo("sdxl", "sdxl", "v", True, 1024, 32, 77, False, "x")
    assert info.described() == "sdxl (sdxl), does not say what it predicts, likely v, zero terminal SNR"
