"""Prior preservation: a batch of its own or the base's own prediction, and never of the subject."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from support.bases import Variant, tiny_base
from support.bench import BOTH, Bench, bench, settled, total
from support.photos import SQUARE, pictures
from torch import Tensor
from torch.testing import assert_close

from finetune.adapters.attach import disabled
from finetune.diffusion.loss import squared_error
from finetune.errors import DataError, RecipeError
from finetune.families.base import Conditioning, read
from finetune.training.objective import objective


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "six")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("classes") / "three", [SQUARE] * 3, trigger="", seed=1)


def prior_bench(base: Path, data: Path, classes: Path, **changes: object) -> Bench:
    b = bench(base, data, prior__mode="images", prior__path=classes, prior__prompt="a thing", **changes)
    b.grow()
    return b


def test_the_prior_is_a_batch_of_its_own_and_weighs_linearly(sd15: Path, data: Path, classes: Path) -> None:
    """T11. min-SNR at other timesteps, other sizes: nothing along the batch axis is shared."""
    found = {}
    for weight in (1.0, 2.0, 3.0):
        b = prior_bench(sd15, data, classes, prior__weight=weight, train__batch=2, objective__min_snr=5.0)
        found[weight] = b.gradients()
    once = {n: found[2.0][n] - found[1.0][n] for n in found[1.0]}
    again = {n: found[3.0][n] - found[2.0][n] for n in found[1.0]}
    assert total(once) > 0.1 * total(found[1.0])
    assert_close(once, again, rtol=1e-3, atol=1e-7)
    instance = prior_off(b, sd15, data)
    assert_close({n: instance[n] + once[n] for n in once}, found[1.0], rtol=1e-3, atol=1e-7)
    ((batch, prior),) = b.batches.step(0, b.machine.ranks).pairs
    assert prior is not None and all(n.startswith("prior/") for n in prior.names)
    assert not any(n.startswith("prior/") for n in batch.names)
    alone, _ = objective(b.family, prior, b.plan.recipe)
    step = b.train(1)[0]
    assert step.prior_loss == pytest.approx(float(alone.detach().mean()), rel=1e-5)


def prior_off(like: Bench, base: Path, data: Path) -> dict[str, Tensor]:
    config = like.plan.recipe
    b = bench(base, data, train__batch=config.train.batch, objective__min_snr=config.objective.min_snr)
    b.grow()
    return b.gradients()


def test_class_images_are_seen_in_turn_all_of_them(sd15: Path, data: Path, classes: Path) -> None:
    b = prior_bench(sd15, data, classes, train__steps=6)
    pairs = [b.batches.step(k, b.machine.ranks).pairs for k in range(6)]
    assert Counter(prior.names[0] for ((_, prior),) in pairs) == {f"prior/0{i}.png": 2 for i in range(3)}


def test_an_empty_folder_or_a_prompt_with_the_trigger_is_refused(
    sd15: Path, data: Path, classes: Path, tmp_path: Path
) -> None:
    """T11. A prior that shows the subject, or nothing, would be no prior."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        settled(sd15, data, prior__mode="images", prior__path=tmp_path / "empty", prior__prompt="a thing")
    with pytest.raises(DataError, match="images of the dataset itself"):
        settled(sd15, data, prior__mode="images", prior__path=data, prior__prompt="a thing")
    for prompt in ("a photo of sks mug", "a photo of SKS mug", "sks, a mug", "a mug (sks)"):
        with pytest.raises(RecipeError, match="trigger"):
            settled(sd15, data, prior__mode="images", prior__path=classes, prior__prompt=prompt, data__trigger="sks")


def test_captions_of_class_images_that_hold_the_trigger_are_refused(sd15: Path, data: Path, tmp_path: Path) -> None:
    """T11, where the caption comes from a sidecar."""
    own = pictures(tmp_path / "own", [SQUARE] * 2, trigger="sks", seed=5)
    with pytest.raises(DataError, match="trigger"):
        settled(sd15, data, prior__mode="images", prior__path=own, prior__prompt="a thing", data__trigger="sks")


def test_self_preservation_pulls_to_the_base_and_not_before_there_is_a_change(sd15: Path, data: Path) -> None:
    """T11, T27. No gradient at the base; linear in the weight after; the same under gradient checkpointing."""
    at_zero, grown = {}, {}
    for name, changes in {
        "off": {},
        "one": {"prior__mode": "own_prediction"},
        "two": {"prior__mode": "own_prediction", "prior__weight": 2.0},
    }.items():
        common = {"data__trigger": "sks", "adapter__components": BOTH, **changes}
        b = bench(sd15, data, **common)
        at_zero[name] = b.gradients()
        b.grow()
        grown[name] = b.gradients()
    assert_close(at_zero["one"], at_zero["off"], rtol=1e-3, atol=1e-6 * total(at_zero["off"]))
    pull = {n: grown["one"][n] - grown["off"][n] for n in grown["off"]}
    assert total(pull) > 0.01 * total(grown["off"])
    assert_close({n: grown["two"][n] - grown["one"][n] for n in pull}, pull, rtol=1e-2, atol=1e-8)
    checkpointed = bench(sd15, data, train__gradient_checkpointing=True, **common)
    checkpointed.grow()
    assert_close(checkpointed.gradients(), grown["two"], rtol=1e-4, atol=1e-9)


def test_self_preservation_asks_the_base_about_captions_without_the_trigger(sd15: Path, data: Path) -> None:
    b = bench(sd15, data, prior__mode="own_prediction", data__trigger="sks", train__steps=1)
    (batch,) = b.step()
    assert "sks" in batch.captions[0] and "sks" not in batch.preserve[0] and "thing" in batch.preserve[0]
    assert batch.preserve_text is not None
    assert_close(batch.preserve_text["text_encoder"].tokens, read(b.family, batch.preserve).tokens, rtol=0, atol=1e-6)
    assert b.train()[0].prior_loss == pytest.approx(0.0, abs=1e-10)  # the adapter changes nothing yet


@pytest.mark.parametrize("line", ["sd15", "sdxl", "sd3", "flux", "qwen"])
def test_both_predictions_in_one_pass_are_those_of_two(data: Path, tmp_path: Path, line: Variant) -> None:
    base = tiny_base(tmp_path / line, line)
    b = bench(base, data, prior__mode="own_prediction", data__trigger="sks", train__batch=2, objective__distilled=True,
              adapter__targets="attention")  # fmt: skip
    b.grow()
    (batch,) = b.step()
    passes, predict = list[int](), b.family.predict

    def counted(noisy: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        passes.append(len(noisy))
        return predict(noisy, t, given)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(b.family, "predict", counted)
        losses, kept = objective(b.family, batch, b.plan.recipe)
    assert passes == [2, 4] and kept is not None
    noisy = b.family.process.add_noise(batch.latents, batch.noise, batch.t)
    given = batch.given(read(b.family, batch.preserve_prompts, batch.preserve_text))
    with torch.no_grad(), disabled(b.family.parts.loaded()):
        own = predict(noisy, batch.t, given)
    assert_close(kept, squared_error(predict(noisy, batch.t, given), own), rtol=1e-4, atol=1e-9)
    plain, _ = objective(b.family, batch._replace(preserve_prompts=()), b.plan.recipe)
    assert_close(losses, plain, rtol=1e-5, atol=1e-8)
    assert float(kept.detach().min()) > 0
