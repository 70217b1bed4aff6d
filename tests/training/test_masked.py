"""Masks in training: what is outside of them is not learnt, whatever else a run does."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from support.bench import Bench, bench, total
from support.photos import SQUARE, WIDE, pictures
from support.ranks import Rank, in_ranks
from support.runs import begin, newest, refused, saved_bytes, short, steps
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from finetune.adapters.attach import disabled
from finetune.diffusion.loss import masked_error, squared_error
from finetune.encoding.images import PLACES, STRAIGHT, Crop
from finetune.errors import DataError, RecipeError, RunError
from finetune.evaluation import effect as evaluate
from finetune.evaluation.held_out import held_out_scores
from finetune.events import Validated, Warned
from finetune.families.base import read
from finetune.planning import plan as planning
from finetune.planning.host import cache_needed
from finetune.ranks import Ranks
from finetune.training import loop as trainer
from finetune.training.look import look
from finetune.training.objective import objective
from finetune.training.stop import follow

BOX = (32, 16, 95, 79)
"""left, top, right, bottom of what is white, of 128 px"""


def mask_all(folder: Path, but: tuple[int, ...] = (), box: tuple[int, int, int, int] = BOX) -> Path:
    """A mask beside each picture, but for some."""
    for number, file in enumerate(sorted(folder.glob("??.png"))):
        if number in but:
            continue
        with Image.open(file) as shown:
            mask = Image.new("L", shown.size)
        across, down = mask.width / 128, mask.height / 128
        ImageDraw.Draw(mask).rectangle((box[0] * across, box[1] * down, box[2] * across, box[3] * down), fill=255)
        mask.save(file.with_name(f"{file.stem}-mask.png"))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures with a mask, and one without."""
    return mask_all(pictures(tmp_path_factory.mktemp("data") / "six"), but=(3,))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "six")


def whole_batch(b: Bench) -> int:
    return next(k for k in range(3) if all(name != "03.png" for batch in b.step(k) for name in batch.names))


# -- the loss ---------------------------------------------------------------------------------------------------------


def test_t24_a_small_mask_weighs_as_much_as_a_large_one() -> None:
    """Where the error is the same everywhere the loss is that of the whole picture, whatever its mask; each sample is
    divided by its own area, and not by the batch's."""
    output, target = torch.full((3, 4, 8, 8), 2.0), torch.zeros(3, 4, 8, 8)
    masks = torch.zeros(3, 8, 8)
    masks[0, :1, :1], masks[1, :4], masks[2] = 1.0, 0.5, 1.0
    assert_close(masked_error(output, target, masks), squared_error(output, target))
    output[:, :, 4:] = 9.0  # outside of the first two
    assert masked_error(output, target, masks)[:2].tolist() == [4.0, 4.0]
    assert float(masked_error(output, target, masks)[2]) == pytest.approx((4 + 81) / 2)


def test_the_share_outside_lies_between_the_mask_alone_and_the_whole_picture() -> None:
    noise = torch.Generator().manual_seed(0)
    output, target = torch.randn(2, 4, 8, 8, generator=noise), torch.randn(2, 4, 8, 8, generator=noise)
    mask = torch.rand(2, 8, 8, generator=noise)
    assert_close(masked_error(output, target, mask, 1.0), squared_error(output, target))
    weight = 0.2 + 0.8 * mask[:, None]
    expected = ((output - target).square() * weight).sum((1, 2, 3)) / weight.expand_as(output).sum((1, 2, 3))
    assert_close(masked_error(output, target, mask, 0.2), expected)
    frames = masked_error(output[:, :, None].expand(2, 4, 3, 8, 8), target[:, :, None].expand(2, 4, 3, 8, 8), mask, 0.2)
    assert_close(frames, expected)


def test_the_loss_is_of_the_area_of_the_mask_in_each_cell(sd15: Path, tmp_path: Path) -> None:
    """T24: of a mask whose border cuts cells the share that is white, not one pixel's; mirrored with its picture."""
    aside = mask_all(pictures(tmp_path / "six"), but=(3,), box=(5, 16, 68, 79))
    b, flips = bench(sd15, aside, train__batch=2, data__crop="random", data__flip=True), set[bool]()
    for k in range(3):
        views = b.plan.train.schedule.micro_batch(k).views
        shown = [look(b.plan, b.plan.train.placed[view.sample], view.visit) for view in views]
        flips |= {one.crop.flip for one in shown}
        for batch in b.step(k):
            cells = b.batches.masks.stacked([(one.placed.example.name, one.crop) for one in shown], batch.latents.shape)
            assert_close(batch.mask, cells, rtol=0, atol=0)
            assert batch.mask is not None and batch.mask.shape == (2, *batch.latents.shape[-2:])
            output = b.family.predict(
                b.family.process.add_noise(batch.latents, batch.noise, batch.t), batch.t,
                batch.given(read(b.family, batch.prompts, batch.text)),
            )  # fmt: skip
            error = (output - b.family.process.target(batch.latents, batch.noise, batch.t)).square().mean(1)
            losses, _ = objective(b.family, batch, b.plan.recipe)
            assert_close(losses, (error * batch.mask).sum((1, 2)) / batch.mask.sum((1, 2)))
            for name, mask in zip(batch.names, batch.mask, strict=True):
                assert (float(mask.mean()) == 1.0) == (name == "03.png")
    assert flips == {False, True}


def test_min_snr_weighs_masked_losses_as_others(sd15: Path, data: Path) -> None:
    found = []
    for gamma in (None, 1.0):
        b = bench(sd15, data, train__batch=2, objective__min_snr=gamma)
        (batch,) = b.step()
        found.append(objective(b.family, batch, b.plan.recipe)[0])
    assert_close(found[1], found[0] * b.family.process.min_snr(batch.t, 1.0))


def test_what_is_outside_has_no_gradient(sd15: Path, data: Path) -> None:
    """The target outside may be anything: the gradients of a whole step stay the same to the last bit."""
    b = bench(sd15, data, train__batch=2)
    b.grow()
    k = whole_batch(b)
    share = b.batches.step(k, b.machine.ranks)
    before = gradients(b, share)
    ((batch, _),) = share.pairs
    assert batch.mask is not None
    changed = torch.where(batch.mask[:, None] > 0, batch.noise, batch.noise + 7)

    def target(_: object, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return changed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(b.family.process), "target", target)
        after = gradients(b, share)
    assert total(before) > 0
    assert_close(after, before, rtol=0, atol=0)


def gradients(b: Bench, share: object) -> dict[str, Tensor]:
    trainer.accumulate(b.state, share, b.plan.recipe, b.machine)  # type: ignore[arg-type]
    return {n: p.grad.clone() for n, p in b.named().items() if p.grad is not None}


def test_own_prediction_holds_what_is_outside_to_the_base(sd15: Path, data: Path) -> None:
    b = bench(sd15, data, train__batch=2, data__mask_outside="own_prediction")
    inside = bench(sd15, data, train__batch=2)
    (batch,), (other,) = b.step(), inside.step()
    assert batch.names == other.names and batch.mask is not None
    at_zero = objective(b.family, batch, b.plan.recipe)[0]
    assert_close(at_zero, objective(inside.family, other, inside.plan.recipe)[0])  # the adapter changes nothing yet
    b.grow(0.2)
    losses, _ = objective(b.family, batch, b.plan.recipe)
    noisy = b.family.process.add_noise(batch.latents, batch.noise, batch.t)
    given = batch.given(read(b.family, batch.prompts, batch.text))
    with torch.no_grad():
        with disabled(b.family.parts.loaded()):
            own = b.family.predict(noisy, batch.t, given)
        output = b.family.predict(noisy, batch.t, given)
    away = ((output - own).square().mean(1) * (1 - batch.mask)).mean((1, 2))
    inner = masked_error(output, b.family.process.target(batch.latents, batch.noise, batch.t), batch.mask)
    assert_close(losses, inner + away)
    assert float(away.max()) > 0


def test_without_masks_nothing_changes_to_the_bit(sd15: Path, data: Path, plain: Path) -> None:
    """A dataset without masks, and one whose masks are not used, train the same bits, whatever the key says."""
    found = []
    for folder, outside in ((plain, 0.0), (plain, "own_prediction"), (data, 1.0)):
        b = bench(sd15, folder, train__batch=2, data__mask_outside=outside)
        assert all(batch.mask is None for batch in b.step())
        found.append((b.train(), b.weights()))
    losses = [[step.loss for step in some] for some, _ in found]
    assert losses[0] == losses[1] == losses[2]
    for _, weights in found[1:]:
        assert_close(weights, found[0][1], rtol=0, atol=0)
    masked = bench(sd15, data, train__batch=2)
    assert [step.loss for step in masked.train()] != losses[0]


# -- where they lie ---------------------------------------------------------------------------------------------------


def test_masks_are_cropped_and_mirrored_with_their_pictures(sd15: Path, tmp_path: Path) -> None:
    """A picture that is its own mask: what the autoencoder is shown is bright just where the mask of the batch is."""
    root = tmp_path / "wide"
    root.mkdir()
    shape = Image.new("L", (256, 64))
    ImageDraw.Draw(shape).polygon([(10, 5), (120, 30), (200, 60), (40, 50)], fill=255)
    shape.convert("RGB").save(root / "00.png")
    shape.save(root / "00-mask.png")
    (root / "00.txt").write_text("sks thing")
    seen = dict[Crop, Tensor]()
    from finetune.encoding import images

    pixels = images._pixels

    def watched(want: images.Wanted, large: object) -> Tensor:
        seen[want.crop] = pixels(want, large)  # type: ignore[arg-type]
        return seen[want.crop]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(images, "_pixels", watched)
        b = bench(sd15, root, data__crop="random", data__flip=True, data__max_aspect=1.0, train__steps=24)
    masks = b.batches.masks.cells
    assert len(masks) > 5 and {crop for _, crop in masks} == set(seen)
    for (_, crop), mask in masks.items():
        shown = F.avg_pool2d((seen[crop][None] + 1) / 2, seen[crop].shape[-1] // mask.shape[-1]).mean((0, 1))
        assert float((shown - mask).abs().mean()) < 0.02, (crop, PLACES[crop.place])


def test_a_crop_that_leaves_nothing_of_a_mask_is_said_before_the_first_step(sd15: Path, tmp_path: Path) -> None:
    root = mask_all(pictures(tmp_path / "wide", (WIDE, SQUARE)), but=(1,), box=(0, 0, 10, 127))
    with pytest.raises(DataError, match=r"00.png: nothing of its mask is left where it is cropped to 128 x 128 px"):
        bench(sd15, root, data__max_aspect=1.0)


def test_a_mask_that_is_changed_while_it_is_in_use_is_said(sd15: Path, tmp_path: Path) -> None:
    root = mask_all(pictures(tmp_path / "two", (SQUARE, SQUARE)), box=(3, 5, 71, 77))  # no other test's
    plan = planning.resolve_plan(short(root, str(sd15), data__resolution=128))
    for name in ("00-mask.png", "01-mask.png"):  # equal masks are averaged once, from either file
        Image.new("L", SQUARE, 200).save(root / name)
    from finetune.training.begin import begin as begin_run

    with pytest.raises(DataError, match=r"0\d-mask.png: changed: the file has changed since it was checked"):
        begin_run(plan)


def test_masks_are_averaged_once_and_kept_small(sd15: Path, data: Path, tmp_path: Path) -> None:
    first = bench(sd15, data, data__cache=tmp_path / "cache")
    shutil.rmtree(tmp_path / "moved", ignore_errors=True)
    from finetune.encoding import masks

    def never(*_: object) -> Tensor:
        raise AssertionError("averaged again")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(masks, "_averaged", never)
        again = bench(sd15, data, data__cache=tmp_path / "cache")
    names = [(f"{n:02d}.png", STRAIGHT) for n in (0, 1, 2, 4, 5)]
    assert sorted(first.batches.masks.cells) == sorted(names)
    assert_close(dict(again.batches.masks.cells), dict(first.batches.masks.cells), rtol=0, atol=0)
    kept = sum(f.stat().st_size for f in (tmp_path / "cache/v3/mask").rglob("*") if f.is_file())
    changes = {"data__resolution": 128, "data__max_aspect": 4.0}
    planned = [
        cache_needed(planning.resolve_plan(short(data, str(sd15), **changes, data__mask_outside=share)))
        for share in (0.0, 1.0)
    ]
    equal = len(names)  # masks, which are kept once; the plan counts each
    assert planned[0].images - planned[1].images == pytest.approx(equal * kept, rel=0.15)


# -- judging ----------------------------------------------------------------------------------------------------------


def test_held_out_losses_are_of_what_the_masks_show(sd15: Path, data: Path, plain: Path) -> None:
    b = bench(sd15, data)
    b.grow(0.2)
    masks, placed = b.batches.masks, [p for p in b.plan.train.placed if p.example.mask]
    args = (placed, b.latents, b.captions, b.machine.autocast)
    found = evaluate.losses(*args, masks=masks)
    assert found.mean != evaluate.losses(*args).mean
    assert found.mean == pytest.approx(evaluate.losses(*args, masks=masks, px=1).mean, rel=1e-5)
    whole = masks._replace(outside=1.0)
    assert evaluate.losses(*args, masks=whole).mean == pytest.approx(evaluate.losses(*args).mean, rel=1e-5)
    scored = held_out_scores(*args, 10**6, masks)
    assert scored != held_out_scores(*args, 10**6) and scored


def test_a_run_tells_validation_losses_of_masks(data: Path, plain: Path, tmp_path: Path) -> None:
    told = []
    for folder in (data, plain):
        loaded = short(folder, train__steps=2, validation__count=2, validation__every=2, data__resolution=64)
        told.append([e.loss for e in begin(loaded, tmp_path / folder.parent.name, 2) if isinstance(e, Validated)])
    assert told[0] and told[0] != told[1]


# -- ranks, and resuming ----------------------------------------------------------------------------------------------


def test_accumulation_and_ranks_weigh_masked_samples_alike(sd15: Path, data: Path) -> None:
    """Six pictures in one step: at once, one after the other, and as the sum of two ranks' shares."""
    found = []
    for changes in ({"train__batch": 6}, {"train__batch": 1, "train__accumulate": 6}):
        b = bench(sd15, data, **changes, train__steps=1)
        b.grow()
        found.append(b.gradients())
    assert_close(found[1], found[0], rtol=1e-3, atol=1e-6 * total(found[0]))
    b = bench(sd15, data, world=2, train__batch=1, train__accumulate=3, train__steps=1)
    b.grow()
    shares = []
    for rank in range(2):
        share = b.batches.step(0, Ranks(rank, 2))
        assert all(batch.mask is not None for batch, _ in share.pairs)
        shares.append(gradients(b, share))
    summed = {name: shares[0][name] + shares[1][name] for name in found[0]}
    assert_close(summed, found[0], rtol=1e-3, atol=1e-6 * total(found[0]))


@pytest.mark.parametrize("outside", [0.25, "own_prediction"])
def test_two_ranks_train_what_one_process_does(data: Path, tmp_path: Path, outside: object) -> None:
    changes = {"train__steps": 3, "data__resolution": 64, "data__mask_outside": outside}
    alone = short(data, **changes, train__batch=1, train__accumulate=2)
    seen = [(step, loss) for step, loss, *_ in steps(begin(alone, tmp_path / "one", 3))]
    both = short(data, **changes, train__batch=1)

    def act(rank: int) -> object:
        from finetune.events import Stepped
        from finetune.training import run

        told: list[tuple[int, float]] = []
        follow(
            run.run(both, tmp_path / "two"),
            lambda e: told.append((e.step, e.loss)) if isinstance(e, Stepped) else None,
        )
        return told

    ended: list[Rank] = in_ranks(2, act, tmp_path / "ended")
    assert [one.code for one in ended] == [0, 0], ended
    told = ended[0].value
    assert isinstance(told, list) and [step for step, _ in told] == [step for step, _ in seen]
    assert [loss for _, loss in told] == pytest.approx([loss for _, loss in seen], rel=1e-4)


@pytest.mark.parametrize("outside", [0.0, "own_prediction"])
def test_a_resumed_run_with_masks_equals_an_unbroken_one(data: Path, tmp_path: Path, outside: object) -> None:
    loaded = short(data, train__steps=4, train__batch=2, data__resolution=64, data__mask_outside=outside,
                   data__crop="random", data__flip=True)  # fmt: skip
    unbroken = begin(loaded, tmp_path / "whole", 4)
    begin(loaded, tmp_path / "lost", 2)
    resumed = begin(loaded, tmp_path / "lost", 4, resume=True)
    assert steps(resumed) == steps(unbroken)[-len(steps(resumed)) :]
    assert saved_bytes(tmp_path / "lost", 4) == saved_bytes(tmp_path / "whole", 4)


def test_another_mask_is_another_run(tmp_path: Path) -> None:
    root = mask_all(pictures(tmp_path / "two", (SQUARE, SQUARE)))
    loaded = short(root, train__steps=4)
    begin(loaded, tmp_path / "out", 2)
    mask_all(root, box=(0, 0, 60, 60))
    assert "dataset: was" in refused(loaded, tmp_path / "out", RunError, resume=True).problem
    shutil.copy(root / "00.png", tmp_path / "00.png")
    assert newest(tmp_path / "out") == 2


def test_a_run_begun_before_there_were_masks_goes_on(plain: Path, tmp_path: Path) -> None:
    """Its record does not know the key."""
    from finetune import recipe

    loaded, out, keys = short(plain, train__steps=4, data__resolution=64), tmp_path / "out", recipe.keys
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(recipe, "keys", lambda: (key for key in keys() if key != "data.mask_outside"))
        begin(loaded, out, 2)
    assert "mask_outside" not in (out / "run.json").read_text()
    seen = begin(loaded, out, 4, resume=True)
    assert [step for step, *_ in steps(seen)] == [3, 4]
    assert not any("mask" in e.text for e in seen if isinstance(e, Warned))


# -- plans ------------------------------------------------------------------------------------------------------------


def test_a_key_without_a_mask_is_said_to_do_nothing(plain: Path, data: Path) -> None:
    said = planning.resolve_plan(short(plain, data__mask_outside=0.5)).notices
    assert "data.mask_outside has no effect: no image of the dataset has a mask" in said
    assert not any("mask" in one for one in planning.resolve_plan(short(data, data__mask_outside=0.5)).notices)


def test_full_weights_have_no_base_to_hold_to(data: Path) -> None:
    from finetune import recipe

    with pytest.raises(RecipeError, match="own_prediction"):
        recipe.load(
            Path("pocket-product"),
            [f"data.path={data}", "data.mask_outside=own_prediction", "adapter.method=full"],
        )


@pytest.mark.parametrize("written", ["-0.1", "1.5", '"base"', "true"])
def test_what_may_be_outside_is_said(written: str, data: Path) -> None:
    from finetune import recipe

    with pytest.raises(RecipeError, match=r"data.mask_outside") as refused:
        recipe.load(Path("pocket-product"), [f"data.path={data}", f"data.mask_outside={written}"])
    assert refused.value.problem.count("data.mask_outside") == 1, refused.value.problem


def test_captions_are_held_against_whole_pictures_as_they_name_what_masks_hide(
    sd15: Path, data: Path, plain: Path
) -> None:
    b = bench(sd15, data)
    b.grow(0.2)
    args = ({}, b.plan.train.placed, b.latents, b.captions, b.machine.autocast)
    bare, masked = evaluate.measure_effect(*args), evaluate.measure_effect(*args, masks=b.batches.masks)
    assert masked.base != bare.base and masked.adapted != bare.adapted
    assert (masked.base_fit, masked.adapted_fit) == (bare.base_fit, bare.adapted_fit) and bare.base_fit is not None
