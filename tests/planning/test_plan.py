"""The plan says what a run will do, exactly, before anything heavy is loaded: settings, arithmetic, buckets, bytes."""

import json
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.bases import tiny_base

from finetune import families, optimizers, recipe
from finetune.adapters import attach as adapters
from finetune.cli import plan_view
from finetune.data.prepare import prepare
from finetune.errors import BaseError, DataError, RecipeError
from finetune.families.base import components
from finetune.machine import DTYPES
from finetune.planning import footprint
from finetune.planning import plan as planning
from finetune.planning.footprint import ComponentFootprint
from finetune.planning.plan import Plan
from finetune.planning.resolve import precision
from finetune.training.preflight import Measured


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("bases")
    return {v: str(tiny_base(root / v, v)) for v in ("sd15", "sd21")} | {"pocket": "pocket"}


@pytest.fixture
def photos(tmp_path) -> Path:
    """Seven pictures of three shapes."""
    return album(tmp_path / "photos", [(64, 64)] * 3 + [(96, 48)] * 3 + [(48, 96)])


def album(folder: Path, sizes: list[tuple[int, int]], caption: str = "picture {} of a mug") -> Path:
    folder.mkdir()
    for i, (width, height) in enumerate(sizes):
        noise = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(caption.format(i))
    return folder


def planned(folder: Path, *sets: str, world: int = 1, text: str = "") -> Plan:
    path = folder.parent / "recipe.toml"
    path.write_text(text or f'base = "pocket"\n[data]\npath = "{folder}"\n')
    return planning.resolve_plan(recipe.load(path, sets), world)


# --- where each value came from --------------------------------------------------------------------------------------


def test_each_value_is_shown_with_where_it_came_from(photos):
    plan = planned(photos, "train.batch=2", "data.trigger=sks")
    rows = plan_view.as_json(plan, [], None)["settings"]
    assert list(rows) == list(recipe.keys())
    assert rows["base"] == {"value": "pocket", "from": "file"}
    assert rows["train.batch"] == {"value": 2, "from": "override"}
    assert rows["data.trigger"] == {"value": "sks", "from": "override"}
    assert rows["train.accumulate"] == {"value": 1, "from": "default"}
    assert rows["data.resolution"] == {"value": 64, "from": "derived"}
    assert rows["adapter.alpha"] == {"value": 16.0, "from": "derived"}
    assert rows["train.steps"] == {"value": 1000, "from": "derived"}
    assert rows["objective.prediction"]["from"] == rows["train.precision"]["from"] == "derived"
    assert rows["sample.prompts"]["value"] == ["sks, picture 0 of a mug", *rows["sample.prompts"]["value"][1:]]


@pytest.mark.parametrize("columns", [80, 120])
def test_the_screen_answers_first_then_shows_every_setting_and_wraps_only_values(photos, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    prompts = 'sample.prompts=["a very long prompt of a mug on a wooden table", "another one [bold]in brackets[/bold]"]'
    plan = planned(photos, "train.batch=2", prompts, "data.trigger=sks")
    plan_view.show(plan, footprint.component_footprints(plan), None, 5 << 30)
    shown = capsys.readouterr().out
    rest, _, table = shown.partition("setting ")
    answers = [line.split()[0] for line in shown.partition("size in px")[0].splitlines() if line[:1].strip()]
    assert answers == [
        "length",
        "time",
        "memory",
        "trains",
        "padded",
        "files",
        "host",
        "disk",
        "prompts",
        "base",
        "verdict",
    ]
    for key in recipe.keys():
        lines = [line for line in table.splitlines() if line.split()[:1] == [key]]
        assert len(lines) == (recipe.value(plan.recipe, key) is not None), key
        if lines:
            assert lines[0].split()[-1] == plan.sources.get(key, "default")
    assert max(map(len, shown.splitlines())) <= columns and "…" not in shown
    assert "brackets[/bold]" in table
    for word in ("unet", "10.86 M", "text_encoder", "optimizer", "64 x 64", "--measure", "5.00 GiB for activations"):
        assert word in rest, word


def test_the_tables_of_the_largest_numbers_fit_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    gib = 1 << 30
    row = ComponentFootprint(
        "text_encoder_2", 12_345_678_901, 234_567_890, 999, 123 * gib, 123 * gib, 123 * gib, 123 * gib
    )
    plan_view.Console().print(plan_view._memory([row]))
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["component", "parameters", "trained", "weights", "gradients", "optimizer", "EMA"]
    assert line.split() == ["text_encoder_2", "12.35", "B", "234.57", "M", *["123.0", "GiB"] * 4] and len(line) <= 80


@pytest.mark.parametrize(("free", "verdict"), [(3 << 30, "does not fit: about 5.0"), (8 << 30, "fits: about 5.0")])
def test_the_verdict_holds_what_is_needed_against_what_is_free(photos, monkeypatch, free, verdict):
    monkeypatch.setattr(plan_view, "device_memory", lambda: ("a test GPU", free))
    plan = planned(photos)
    told = plan_view.answers(plan, footprint.component_footprints(plan), None, 5 << 30)["verdict"]
    assert told.startswith(verdict) and f"{free >> 30}.00 GiB free on a test GPU" in told


def test_the_verdict_counts_the_measured_peak_and_the_encoder_that_reads_captions(photos, monkeypatch):
    plan = planned(photos)
    needed = lambda measured=None: plan_view.needed_bytes(plan, [], measured, 1 << 30)  # noqa: E731
    assert needed() == 1 << 30
    assert needed(Measured(seconds=1.0, peak_bytes=3 << 30, loss=1.0)) == 3 << 30
    monkeypatch.setattr(plan_view, "encoder_bytes", lambda _: {"text_encoder_2": 9 << 30})
    assert needed() == 9 << 30


def test_a_resolved_recipe_plans_the_same_run_again(photos, tmp_path):
    first = planned(photos, "train.epochs=3", "train.batch=2", "data.trigger=sks", "data.class_word=mug")
    path = tmp_path / "resolved.toml"
    path.write_text(recipe.dumps(first.recipe))
    again = planning.resolve_plan(recipe.load(path))
    assert again.recipe == first.recipe and again.train == first.train and again.steps == first.steps


# --- the identity ----------------------------------------------------------------------------------------------------

AWKWARD = [
    # images, batch, accumulate, ranks, unit, length
    (1, 1, 1, 1, "steps", 1),
    (1, 4, 2, 1, "epochs", 3),
    (3, 1, 4, 1, "epochs", 1),
    (3, 2, 1, 2, "epochs", 1),
    (5, 2, 3, 1, "epochs", 2),
    (7, 2, 2, 2, "epochs", 3),
    (7, 3, 1, 4, "steps", 5),
    (11, 4, 1, 1, "epochs", 1),
    (12, 4, 3, 2, "epochs", 5),
    (16, 16, 1, 1, "epochs", 2),
    (6, 4, 1, 1, "steps", 300),
    (13, 8, 2, 3, "steps", 7),
]


@pytest.mark.parametrize("images, batch, accumulate, world, unit, length", AWKWARD)
def test_planned_is_counted(images, batch, accumulate, world, unit, length, tmp_path):
    """images x visits = samples = steps x global batch (the last step of epochs may be short)."""
    folder = album(tmp_path / "many", [((64, 64), (96, 48), (48, 96))[i % 3] for i in range(images)])
    sets = (f"train.batch={batch}", f"train.accumulate={accumulate}", f"train.{unit}={length}")
    plan = planned(folder, *sets, world=world)
    counted, micros, per_rank = Counter(), 0, Counter()
    for step in range(plan.steps):
        shares = [plan.train.schedule.step(step, rank, plan.micros) for rank in range(world)]
        assert any(shares), "a step without a sample"
        for rank, share in enumerate(shares):
            per_rank[rank] += len(share)
            for micro in share:
                micros += 1
                counted.update(view.sample for view in micro.views)
                assert len(micro.views) == batch
                assert len({plan.train.placed[v.sample].bucket for v in micro.views}) == 1
    assert micros == plan.micros and sum(counted.values()) == plan.samples == micros * batch
    assert counted == plan.visits()
    assert not any(plan.train.schedule.step(plan.steps, rank, plan.micros) for rank in range(world))
    wide = batch * accumulate * world
    assert math.ceil(plan.samples / wide) == plan.steps
    if unit == "steps":
        assert plan.steps == length and plan.samples == length * wide
    else:
        assert set(counted) == set(range(images)) and min(counted.values()) >= length
    identity = plan_view.as_json(plan, [], None)["identity"]
    assert identity["images"] * identity["visits_mean"] == pytest.approx(identity["samples"])
    assert identity["global_batch"] == wide
    said = plan_view.answers(plan, [], None)["length"]
    assert f" = {plan.samples} samples; each of the {images} images is seen " in said
    rest = plan.samples % wide
    assert (f"+ 1 step of {rest}" in said) == bool(rest)
    assert f"{plan.samples // wide} steps x {wide} images" in said


def test_the_bucket_table_counts_every_image_once(photos):
    plan = planned(photos, "train.batch=2")
    rows = plan.buckets()
    assert sum(row.images for row in rows) == 7 and len({row.bucket for row in rows}) == len(rows) == 3
    assert sum(row.batches for row in rows) == plan.train.schedule.micros_per_epoch == 5
    for row in rows:
        inside = [p for p in plan.train.placed if p.bucket == row.bucket]
        assert len(inside) == row.images and row.worst_crop_loss == max(p.crop_loss for p in inside)
        assert row.weight == row.batches * 2 / row.images
        assert row.bucket.width % plan.facts.stride == row.bucket.height % plan.facts.stride == 0
    assert "64 x 64" in plan_view.answers(plan, [], None)["padded"]
    assert "padded" not in plan_view.answers(planned(photos), [], None)


# --- bytes -----------------------------------------------------------------------------------------------------------

WEIGHED = [
    ("sd15", ()),
    ("sd15", ("optimizer.name=adamw8bit", "adapter.rank=160")),
    ("sd15", ('adapter.components=["denoiser", "text_encoder"]', "adapter.targets=all", "train.precision=bf16")),
    ("sd21", ('adapter.components=["text_encoder"]', "adapter.text_encoder_targets=all", "optimizer.name=adamw8bit")),
    ("sd21", ("adapter.method=full", 'adapter.components=["denoiser", "text_encoder"]')),
    ("sd15", ("adapter.method=full", 'adapter.components=["denoiser", "text_encoder"]', "optimizer.name=adamw8bit")),
    ("sd21", ("adapter.method=full", "train.precision=bf16", "optimizer.name=adamw8bit")),
    ("sd15", ("adapter.targets=all", 'adapter.ranks={"conv1" = 3, "to_q" = 5}', "adapter.rank=4")),
    ("pocket", ('adapter.components=["denoiser", "text_encoder"]', "adapter.targets=attention+ff")),
]


@pytest.mark.parametrize("variant, sets", WEIGHED, ids=[f"{v}-{len(s)}-{'.'.join(s)[-30:]}" for v, s in WEIGHED])
def test_bytes_are_those_of_the_real_objects(variant, sets, bases, photos):
    plan = planned(photos, f"base={bases[variant]}", "data.resolution=128", *sets)
    rows = {row.name: row for row in footprint.component_footprints(plan)}
    config = plan.recipe
    family = families.load(config.base, DTYPES[config.train.precision])
    assert rows.keys() == components(family).keys()
    total = {n: sum(p.numel() for p in m.parameters()) for n, m in components(family).items()}
    trained = {n: family.parts[n] for n in adapters.component_names(config.adapter, family.denoiser_name)}
    trainable = adapters.attach(trained, family.presets, config.adapter, 0)
    rates = optimizers.rates(config.optimizer, list(trainable))
    groups = [(c, list(p.values()), rates[c]) for c, p in trainable.items()]
    optimizer = optimizers.build(config.optimizer, groups)
    for _, parameters, _ in groups:
        for p in parameters:
            p.grad = torch.ones_like(p)
    optimizer.step()
    for name, module in components(family).items():
        mine, row = trainable.get(name, {}), rows[name]
        assert row.parameters == total[name]
        assert row.trainable == sum(p.numel() for p in mine.values())
        assert row.weight_bytes == sum(p.numel() * p.element_size() for p in module.parameters())
        assert row.gradient_bytes == sum(p.grad.numel() * p.grad.element_size() for p in mine.values())
        carried = {n.rpartition(".lora_")[0] for n in mine} if config.adapter.method == "lora" else set()
        assert row.modules == len(carried)
    # tables that 8-bit parameters share are one object; count each once
    held = {t.data_ptr(): t.numel() * t.element_size() for s in optimizer.state.values() for t in s.values()
            if isinstance(t, torch.Tensor)}  # fmt: skip
    small = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor) and not v.numel()]
    assert not small
    assert sum(row.optimizer_bytes for row in rows.values()) == sum(held.values())


def test_a_rank_for_modules_that_are_no_targets_is_refused(photos, bases):
    plan = planned(photos, f"base={bases['sd15']}", 'adapter.ranks={"ff.net.2" = 4}')
    with pytest.raises(RecipeError, match=r"'ff\.net\.2' match no module that adapter\.targets chooses"):
        footprint.component_footprints(plan)


# --- what it refuses -------------------------------------------------------------------------------------------------


def test_holding_out_everything_is_refused_with_the_most_that_is_possible(photos):
    with pytest.raises(DataError, match="leaves nothing to train on: the dataset has 7 images") as caught:
        planned(photos, "validation.count=7")
    assert caught.value.hint == "at most 6"
    assert len(planned(photos, "validation.count=6").train.placed) == 1


def test_what_is_held_out_depends_on_the_seed_alone_and_is_never_trained_on(photos):
    first, again = (planned(photos, "validation.count=3") for _ in range(2))
    names = [p.example.name for p in first.held_out]
    assert names == [p.example.name for p in again.held_out] and len(set(names)) == 3
    assert not {p.example.name for p in first.train.placed} & set(names)
    assert len(first.train.placed) == 4
    other = [
        [p.example.name for p in planned(photos, "validation.count=3", f"train.seed={s}").held_out] for s in (1, 2)
    ]
    assert names not in other or other[0] != other[1]
    wider = planned(photos, "validation.count=3", "train.batch=2", "train.epochs=4", world=2)
    assert [p.example.name for p in wider.held_out] == names


def test_a_prior_of_its_own_needs_a_trigger(photos):
    with pytest.raises(RecipeError, match="there is no trigger") as caught:
        planned(photos, "prior.mode=own_prediction")
    assert "data.trigger" in caught.value.hint
    assert planned(photos, "prior.mode=own_prediction", "data.trigger=sks").recipe.prior.mode == "own_prediction"
    with pytest.raises(RecipeError, match="the same without the trigger"):
        planned(photos, "prior.mode=own_prediction", "data.trigger=mug", "data.class_word=mug")


def test_class_images_need_a_caption_that_is_not_the_subjects(photos, tmp_path):
    album(tmp_path / "mugs", [(64, 64)] * 2)
    for file in (tmp_path / "mugs").glob("*.txt"):
        file.unlink()
    for file in (tmp_path / "mugs").glob("*.png"):
        file.write_bytes(file.read_bytes() + b"\0" * 9)  # other files than the photos
    images = ("prior.mode=images", f"prior.path={tmp_path / 'mugs'}", "data.trigger=sks")
    with pytest.raises(RecipeError, match=r"prior\.prompt: missing"):
        planned(photos, *images)
    with pytest.raises(RecipeError, match="holds the trigger"):
        planned(photos, *images, "prior.prompt=a photo of sks mug")
    plan = planned(photos, *images, "data.class_word=mug")
    assert plan.prior is not None and {p.example.caption for p in plan.prior.placed} == {"a photo of mug"}
    assert plan_view.answers(plan, [], None)["prior"].startswith("2 class images")


def test_the_trigger_stands_in_the_prompts(photos):
    plan = planned(photos, 'sample.prompts=["a {trigger} mug", "a mug"]', "data.trigger=sks")
    assert plan.recipe.sample.prompts == ("a sks mug", "a mug")


def test_a_trigger_other_than_the_datasets_is_refused_naming_both(photos, tmp_path):
    prepare(photos, tmp_path / "mug", trigger="sks", class_word="mug")
    with pytest.raises(DataError) as caught:
        planned(tmp_path / "mug", "data.trigger=ohwx")
    assert "'ohwx'" in caught.value.problem and "'sks'" in caught.value.problem and caught.value.hint
    assert planned(tmp_path / "mug").recipe.data.trigger == "sks"


def test_a_prediction_other_than_the_bases_is_refused_naming_both(photos, bases):
    with pytest.raises(RecipeError, match=r"objective\.prediction = epsilon, but .* predicts v") as caught:
        planned(photos, f"base={bases['sd21']}", "objective.prediction=epsilon")
    assert "auto" in caught.value.hint


def test_a_base_that_is_not_there_is_refused(photos):
    with pytest.raises(BaseError, match=r"no base \./nothing"):
        planned(photos, "base=./nothing")


def test_a_precision_that_cannot_work_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert precision("auto") == "fp32" and precision("bf16") == "bf16"
    with pytest.raises(RecipeError, match="needs a CUDA device"):
        precision("fp16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert precision("auto") == "fp16"
    with pytest.raises(RecipeError, match="no bf16 arithmetic"):
        precision("bf16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert precision("auto") == "bf16"


def test_more_ranks_widen_the_step_and_leave_steps_and_rates_as_they_are(photos):
    one, four = planned(photos, "train.steps=10"), planned(photos, "train.steps=10", world=4)
    assert (one.steps, four.steps) == (10, 10) and four.samples == 4 * one.samples
    assert one.recipe == four.recipe
    assert "10 steps x 4 images (batch 1 x 4 ranks)" in plan_view.answers(four, [], None)["length"]


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_it_as_json_and_measures_one_real_step(bases, tmp_path, capsys, monkeypatch):
    folder = album(tmp_path / "two", [(128, 128), (128, 128)])
    path = tmp_path / "mine.toml"
    path.write_text(
        f'base = "{bases["sd15"]}"\n[data]\npath = "{folder}"\nresolution = 128\n[adapter]\ntargets = ["attn2.to_k"]\n'
    )
    from finetune import cli

    monkeypatch.setattr(cli, "hush", lambda: None)
    monkeypatch.setattr(sys, "argv", ["finetune", "plan", str(path), "--json", "--measure", "--gpus", "2"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    found = json.loads(capsys.readouterr().out)
    assert not left.value.code
    assert found.keys() == {
        "settings", "base", "identity", "held_out", "prior_images", "buckets", "components", "bytes",
        "activation_bytes", "encoder_bytes", "measured", "needed_bytes", "device", "notices", "candidates",
        "example", "disk_bytes", "cache", "host", "spread", "captions", "masked", "weights",
    }  # fmt: skip
    assert found["identity"]["global_batch"] == 2 and found["base"]["family"] == "sd"
    assert [c.keys() for c in found["components"]] == [set(ComponentFootprint._fields)] * 2
    assert found["bytes"] == sum(c[k] for c in found["components"] for k in c if k.endswith("_bytes"))
    measured = found["measured"]
    assert measured.keys() == {*Measured._fields, "eta_seconds"}
    assert all(math.isfinite(v) and v > 0 for v in measured.values())
    assert measured["eta_seconds"] == measured["seconds"] * 1000
    assert not list(tmp_path.glob("runs*")) and sorted(p.name for p in tmp_path.iterdir()) == ["mine.toml", "two"]


def test_what_was_measured_is_said_with_the_time_it_will_take(photos):
    plan = planned(photos, "train.steps=7200")
    said = plan_view.answers(plan, [], Measured(seconds=0.5, peak_bytes=3 << 30, loss=1.0))
    assert said["time"] == "about 60 min: 7200 steps of 0.50 s at the largest size"
    assert "measured peak 3.00 GiB" in said["memory"]
    assert "--measure" in plan_view.answers(plan, [], None)["time"]


def test_pictures_that_nobody_captioned_are_told_what_captions_would_bring(tmp_path):
    for i in range(3):
        Image.new("RGB", (64, 64), (60 * i, 0, 0)).save(tmp_path / f"IMG_{i}.png")
    data = {"path": tmp_path, "trigger": "sks", "class_word": "mug"}
    notices = planning.resolve_plan(recipe.Loaded(recipe.Recipe(base="pocket", data=data), {}, tmp_path)).notices
    said = [one for one in notices if "nobody captioned these 3 pictures" in one]
    step = f"caption(path='{tmp_path}', vocabulary='pocket') writes them"
    assert len(said) == 1 and step in said[0]
    table = "".join(f'{{"file_name": "IMG_{i}.png", "text": "a mug on table {i}"}}\n' for i in range(3))
    (tmp_path / "metadata.jsonl").write_text(table)
    notices = planning.resolve_plan(recipe.Loaded(recipe.Recipe(base="pocket", data=data), {}, tmp_path)).notices
    assert not [one for one in notices if "nobody captioned" in one]
