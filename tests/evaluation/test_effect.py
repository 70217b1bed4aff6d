"""Measures that do not move by themselves, and that see what did and what did not happen."""

import dataclasses
from pathlib import Path

import pytest
import torch
from families.cases import USUAL, Case, small_base
from support.bases import tiny_base
from support.bench import BOTH, Bench, bench
from support.photos import SQUARE, WIDE, pictures
from torch import nn
from torch.testing import assert_close

from finetune import families, recipe
from finetune.adapters import attach as adapters
from finetune.adapters.lora import delta
from finetune.encoding.text import Captions
from finetune.evaluation import effect as evaluate
from finetune.families.base import Conditioning, components, evaluation_mode

pytestmark = pytest.mark.usefixtures("whole_judgement")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Ready to train, with dropout in the adapter and weights as after training."""
    folder = tmp_path_factory.mktemp("evaluate")
    base = tiny_base(folder / "base", "sd15")
    b = bench(base, pictures(folder / "data", [SQUARE] * 2 + [WIDE]), adapter__components=BOTH,
              adapter__dropout=0.5, adapter__targets=("to_q", "conv1"), adapter__alpha=2.0)  # fmt: skip
    b.grow(0.1)
    return b


def losses(b: Bench, captions: list[str] | None = None) -> evaluate.Losses:
    return evaluate.losses(b.plan.train.placed, b.latents, b.captions, b.machine.autocast, captions)


def test_losses_are_bit_for_bit_the_same_whenever_they_are_asked(trained: Bench) -> None:
    """Whatever torch's own generator did, and with dropout in a model that is in training mode."""
    torch.manual_seed(0)
    first = losses(trained)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert losses(trained) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert first.mean == pytest.approx(sum(first.bands.values()) / len(evaluate.LEVELS), rel=1e-6)
    assert list(first.bands) == [str(level) for level in evaluate.LEVELS]


def test_the_noise_of_an_image_does_not_depend_on_the_others(trained: Bench) -> None:
    """One more held-out image moves no other's loss."""
    placed = trained.plan.train.placed
    args = (trained.latents, trained.captions, trained.machine.autocast)
    alone = [evaluate.losses([p], *args).mean for p in placed]
    assert losses(trained).mean == pytest.approx(sum(alone) / len(alone), rel=1e-5)
    reverse = evaluate.losses(placed[::-1], *args)
    assert reverse.mean == pytest.approx(losses(trained).mean, rel=1e-6)


def test_evaluation_leaves_modes_weights_and_gradients_alone(trained: Bench) -> None:
    parts = components(trained.family)
    modes = [m.training for c in parts.values() for m in c.modules()]
    weights = {n: t.clone() for c in parts.values() for n, t in c.state_dict().items()}
    losses(trained)
    evaluate.output_change(["a"], (4, 16, 16), trained.captions, trained.machine.autocast)
    assert [m.training for c in parts.values() for m in c.modules()] == modes and True in modes
    assert_close({n: t for c in parts.values() for n, t in c.state_dict().items()}, weights, rtol=0, atol=0)
    assert all(p.grad is None for c in parts.values() for p in c.parameters())


def test_quiet_gives_each_module_its_own_mode_back_even_after_an_error(trained: Bench) -> None:
    unet = components(trained.family)["unet"]
    first = next(m for m in unet.modules() if isinstance(m, nn.Dropout))
    first.eval()
    before = [m.training for m in unet.modules()]
    with pytest.raises(KeyboardInterrupt), evaluation_mode(trained.family):
        assert not any(m.training for m in unet.modules())
        raise KeyboardInterrupt
    assert [m.training for m in unet.modules()] == before
    first.train()


def test_captions_are_used(trained: Bench) -> None:
    captions = [p.example.caption for p in trained.plan.train.placed]
    assert losses(trained, captions) == losses(trained)
    assert losses(trained, captions[::-1]).mean != losses(trained).mean


def test_the_relative_change_is_that_of_the_dense_weights(trained: Bench) -> None:
    live, norms = adapters.read_changes(components(trained.family)), adapters.movement(components(trained.family), {})
    moved = torch.cat([delta(change).double().flatten() for change in live.values()])
    before = {name: layer.get_base_layer().weight for name, layer in adapters._layers(components(trained.family))}
    whole = torch.cat([before[name].detach().double().flatten() for name in live])
    assert evaluate.relative_change(norms.values()) == pytest.approx(float(moved.norm() / whole.norm()), rel=1e-5)
    assert any(change.down.ndim == 4 for change in live.values())


def test_the_distance_of_two_bases_is_relative() -> None:
    a = {"x": torch.tensor([3.0, 0.0]), "y": torch.tensor([4.0])}
    assert evaluate.distance(a, a) == 0.0
    assert evaluate.distance(a, {"x": torch.tensor([3.0, 0.0]), "y": torch.tensor([3.0])}) == pytest.approx(0.2)


def test_the_output_change_is_that_of_the_prediction_and_zero_without_one(trained: Bench) -> None:
    args = (["a", "b"], (4, 16, 16))
    first = evaluate.output_change(*args, trained.captions, trained.machine.autocast)
    assert first == evaluate.output_change(*args, trained.captions, trained.machine.autocast) > evaluate.NO_EFFECT
    base = families.load(trained.plan.recipe.base)
    untrained = Captions(base, {}, trained.machine.device)
    assert evaluate.output_change(*args, untrained, trained.machine.autocast) == 0.0


def test_an_untrained_adapter_is_seen_to_have_learnt_nothing(trained: Bench, tmp_path: Path) -> None:
    b = bench(trained.plan.recipe.base, pictures(tmp_path / "data", [SQUARE] * 2), adapter__components=BOTH)
    args = (b.plan.train.placed, b.latents, b.captions, b.machine.autocast)
    found = evaluate.measure_effect({}, *args)
    assert found.gain == 0.0 and found.adapted == found.base and evaluate.warnings(found)
    assert evaluate.relative_change(adapters.movement(components(b.family), {}).values()) == 0.0 < evaluate.NO_EFFECT
    b.grow(0.3)  # and one that does something, as such; the base is still the measure
    other = evaluate.measure_effect({}, *args)
    assert other.base == found.base and other.adapted == losses(b).mean != found.adapted
    assert other.gain == pytest.approx(1 - other.adapted / other.base)


@pytest.mark.parametrize("own, others, share", [(0.0, 1.0, 1.0), (1.0, 0.0, 0.0)])
def test_a_caption_fits_where_it_predicts_its_image_better_than_others_do(
    own: float, others: float, share: float, trained: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def errors(asked: list[evaluate.Judged], *_: object) -> dict[tuple[str, str, float], float]:
        return {a.key: own if a.prompt.caption == a.placed.example.caption else others for a in asked}

    monkeypatch.setattr(evaluate, "errors", errors)
    args = (trained.plan.train.placed, trained.latents, trained.captions, trained.machine.autocast)
    found = evaluate.measure_effect({}, *args)
    assert found.base_fit == found.adapted_fit == (share, 1 / 3)


# --- in batches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", USUAL, ids=lambda case: case.name)
def test_in_batches_the_numbers_are_those_of_one_by_one(case: Case, tmp_path: Path) -> None:
    """Of every family: two buckets, sizes and captions of several lengths, levels and captions mixed in a batch."""
    data = pictures(tmp_path / "data", [SQUARE, (192, 192), WIDE])
    (data / "00.txt").write_text("a much longer caption that is made of many more words than the others")
    components = [name for name in ("denoiser", "text_encoder") if name == "denoiser" or not case.transformer]
    b = bench(small_base(case, tmp_path / "base"), data, adapter__components=tuple(components))
    b.grow(0.1)
    args = ({"unet": 0.1}, b.plan.train.placed, b.latents, b.captions, b.machine.autocast)
    together, alone = (evaluate.measure_effect(*args, px=px) for px in (10 * 128**2, 1))
    assert together.base_fit == alone.base_fit is not None and together.adapted_fit == alone.adapted_fit
    for name in ("base", "adapted", "output"):
        assert getattr(together, name) == pytest.approx(getattr(alone, name), rel=1e-5), name
    assert together.adapted != pytest.approx(together.base, rel=1e-4)
    held_out = [
        evaluate.losses(b.plan.train.placed, b.latents, b.captions, b.machine.autocast, px=px) for px in (1, 10**6)
    ]
    assert held_out[1].bands == pytest.approx(held_out[0].bands, rel=1e-5)


@pytest.fixture
def predicted(trained: Bench, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of every batch that the denoiser predicts."""
    seen, predict = list[tuple[int, ...]](), trained.family.predict

    def noted(noisy: torch.Tensor, t: torch.Tensor, given: Conditioning) -> torch.Tensor:
        seen.append(tuple(noisy.shape))
        return predict(noisy, t, given)

    monkeypatch.setattr(trained.family, "predict", noted)
    return seen


def test_training_is_judged_in_few_batches_and_no_prediction_is_made_twice(
    trained: Bench, predicted: list[tuple[int, ...]]
) -> None:
    """Three images at five levels, and at two of them with two other captions; adapter off and on."""
    args = ({}, trained.plan.train.placed, trained.latents, trained.captions, trained.machine.autocast)
    evaluate.measure_effect(*args, px=8 * 128**2)
    shapes = {p.example.name: (p.bucket.height // 8, p.bucket.width // 8) for p in trained.plan.train.placed}
    output, judged = predicted[:2], predicted[2:]
    assert [shape[0] for shape in output] == [5, 5]  # the levels, adapter on and off
    asked = {cells: 2 * (5 + 2 * 2) * list(shapes.values()).count(cells) for cells in shapes.values()}
    made = {cells: sum(b for b, _, *own in judged if tuple(own) == cells) for cells in asked}
    assert made == asked and len(asked) == 2
    assert max(b * h * w * 64 for b, _, h, w in judged) <= 8 * 128**2
    assert len(judged) == sum(2 * -(-n // 2 // (8 * 128**2 // (h * w * 64))) for (h, w), n in asked.items())


def test_a_batch_is_as_large_as_a_training_batch_or_as_a_cpu_is_fast_with(trained: Bench) -> None:
    plan = trained.plan
    largest = max(p.bucket.width * p.bucket.height for p in plan.train.placed)
    many = dataclasses.replace(plan, recipe=recipe.replace(plan.recipe, train__batch=50))
    assert evaluate.at_once_px(many) == 50 * largest > evaluate.AT_ONCE_PX
    few = dataclasses.replace(plan, recipe=recipe.replace(plan.recipe, train__batch=1))
    assert evaluate.at_once_px(few) == evaluate.AT_ONCE_PX > largest
