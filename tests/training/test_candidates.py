"""Each sampled step leaves a whole adapter file, and RUN@STEP is one name for it wherever an adapter is read."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from support.bench import settled
from support.runs import Done, short, train
from typer.testing import CliRunner

from finetune import api, references
from finetune import tensors as weights
from finetune.adapters.change import AdapterState
from finetune.cli import app
from finetune.errors import BaseError, RecipeError, RunError, VerifyError
from finetune.events import Candidate, Event, Warned
from finetune.files import layouts
from finetune.planning.candidates import candidate_bytes, candidate_count
from finetune.planning.footprint import component_footprints
from finetune.planning.room import disk_bytes
from finetune.references import adapter_path
from finetune.sampling.request import AdapterWeight
from finetune.sampling.words import adapters_in_use

pytestmark = pytest.mark.whole
SCALED = {"adapter__rank": 8, "adapter__alpha": 4.0, "adapter__components": ("denoiser", "text_encoder"),
          "adapter__text_encoder_targets": ("q_proj", "v_proj")}  # fmt: skip
"""at half strength, and in a text encoder that a file fills up with zeros"""


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Sampled at 2 and 4, with a running mean; one checkpoint is kept, of step 5."""
    out = tmp_path_factory.mktemp("run") / "mug"
    loaded = short(data, **SCALED, train__steps=5, train__keep_last=1, train__ema=0.5, sample__every=2)
    events: list[Event] = []
    return Done(out, train(loaded, out, events.append), events, loaded)


def strength(path: Path, names: AdapterState) -> dict[str, float]:
    """module -> norm of its whole change, as it is applied."""
    read = layouts.read_adapter(path, {name: change.shape for name, change in names.items()})
    assert not read.problems
    return {n: float(c.delta(torch.zeros(c.shape)).norm()) for n, c in read.modules.items() if not c.is_zero()}


def test_each_sampled_step_leaves_a_file_that_outlives_its_checkpoint(done: Done) -> None:
    assert [p.name for p in references.step_folders(done.out / "checkpoints")] == ["step-000005"]
    told = [event for event in done.events if isinstance(event, Candidate)]
    assert [event.step for event in told] == [2, 4]
    for event in told:
        assert (
            event.path == done.out / "candidates" / f"step-{event.step:06d}" / f"mug-step{event.step:06d}.safetensors"
        )
        metadata = weights.read_header(event.path).metadata
        assert metadata["finetune.steps"] == str(event.step) and metadata["finetune.trigger"] == "sks"
        assert "rank = 8" in metadata["finetune.recipe"]
        assert metadata["sshs_model_hash"] == weights.payload_sha256(event.path)
        assert json.loads(event.path.with_suffix(".json").read_text())["activation text"] == "sks"
    assert not list(done.out.rglob("*.part"))


def test_a_candidate_is_what_the_run_would_have_exported_had_it_ended_there(done: Done, tmp_path: Path) -> None:
    """With train.ema the mean; to the bit."""
    shorter = train(short(done.loaded.recipe.data.path, **SCALED, train__steps=4, train__ema=0.5), tmp_path / "mug")
    assert weights.payload_sha256(shorter.path) == weights.payload_sha256(adapter_path(f"{done.out}@4"))


def test_a_step_is_its_candidate_or_its_checkpoint_or_an_error_that_lists_the_steps(done: Done) -> None:
    assert adapter_path(f"{done.out}@2") == adapter_path(f"{done.out}/@2") == adapter_path(done.out / "@2")
    assert adapter_path(f"{done.out}@5") == adapter_path(f"{done.out}@last") == done.out / "checkpoints/step-000005"
    assert adapter_path(done.out / "candidates" / "step-000002").name == "mug-step000002.safetensors"
    assert adapter_path(done.result.path) == done.result.path and adapter_path(done.out) == done.out
    for word in ("3", "best", "-2", ""):
        with pytest.raises(BaseError) as refused:
            adapter_path(f"{done.out}@{word}")
        assert "its steps are 2, 4, 5" in refused.value.hint


def test_a_folder_without_a_run_has_no_steps_and_a_path_with_an_at_sign_is_a_path(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="holds no step of a run"):
        adapter_path(f"{tmp_path}@2")
    (tmp_path / "a@2").write_text("")
    assert adapter_path(tmp_path / "a@2") == tmp_path / "a@2"
    assert adapter_path(f"{tmp_path}/none@2") == tmp_path / "none@2"


def test_every_reader_of_adapters_takes_a_step_of_a_run(done: Done, tmp_path: Path) -> None:
    assert api.inspect(f"{done.out}@2").ranks.keys() == {"8"}
    for step in (2, 5):
        report = api.verify(f"{done.out}@{step}")
        assert report.ok, report.problems
        made = api.export(f"{done.out}@{step}", out=tmp_path / f"{step}.safetensors")
        assert made.difference < 1e-5
    assert weights.read_header(tmp_path / "5.safetensors").metadata["finetune.trigger"] == "sks"
    assert json.loads((tmp_path / "5.json").read_text())["activation text"] == "sks"
    assert AdapterWeight.of(f"{done.out}@2:0.5") == AdapterWeight(adapter_path(f"{done.out}@2"), 0.5)
    assert AdapterWeight.of(f"{done.out}@2") == AdapterWeight(adapter_path(f"{done.out}@2"), 1.0)
    data = done.loaded.recipe.data.path
    whole = {**SCALED, "adapter__targets": ("attn2.to_q", "attn2.to_v")}
    plan = settled("pocket", data, data__resolution=64, adapter__init_from=Path(f"{done.out}@2"), **whole)
    assert plan.recipe.adapter.init_from == adapter_path(f"{done.out}@2")
    for strange in ("9" * 5000, "-2", "2.0", "²"):
        with pytest.raises(BaseError, match="no such step"):
            adapter_path(f"{done.out}@{strange}")
    with pytest.raises(RecipeError, match=r"adapter.init_from: .*no such step"):
        settled("pocket", data, adapter__init_from=Path(f"{done.out}@3"), **whole)
    for command in (["inspect", f"{done.out}@3"], ["verify", f"{done.out}@3"], ["export", "--from", f"{done.out}@3"]):
        assert isinstance(CliRunner().invoke(app, command).exception, BaseError), command


PLACES = ("", "ema", "ema/unet", "ema/unet/adapter_model.safetensors", "ema/text_encoder/adapter_model.safetensors")


def test_a_step_knows_its_words_from_its_file_or_its_checkpoint(done: Done, tmp_path: Path) -> None:
    without_mean = Path(shutil.copytree(references.adapter_path(f"{done.out}@5"), tmp_path / "step-000005"))
    shutil.rmtree(without_mean / "ema")
    assert (without_mean / "optimizer.safetensors").is_file(), "it stands before the adapter's folders"
    for place in (references.adapter_path(f"{done.out}@4"), without_mean):
        [used] = adapters_in_use([AdapterWeight(place)])
        assert used.trigger == "sks", place


@pytest.mark.parametrize("place", PLACES)
def test_every_path_into_a_checkpoint_has_its_true_strength(place: str, done: Done, tmp_path: Path) -> None:
    """At rank 8 and alpha 4 what is read without alpha is twice as strong."""
    names = layouts.read_adapter(done.out / "adapter" / "peft").modules
    true = strength(done.out / "adapter" / "peft", names)
    path = done.out / "checkpoints" / "step-000005" / place
    found = strength(path, names)
    assert found and found == {name: true[name] for name in found}
    if path.is_file():  # and so has a copy of it, which says its alpha itself
        assert strength(Path(shutil.copy(path, tmp_path / "renamed.safetensors")), names) == found


def test_pefts_weights_without_their_configuration_are_not_guessed(done: Done, tmp_path: Path) -> None:
    own = done.out / "checkpoints/step-000005/ema/unet/adapter_model.safetensors"
    weights.write_tensors(weights.load_tensors(own), tmp_path / own.name, {})
    with pytest.raises(BaseError, match="its strength is not known") as refused:
        layouts.read_adapter(tmp_path / own.name)
    assert "adapter_config.json" in refused.value.hint
    other = Path(shutil.copy(tmp_path / own.name, tmp_path / "renamed.safetensors"))
    assert layouts.read_adapter(other).warnings == (layouts.ASSUMED,)
    with pytest.raises(VerifyError, match="taken as alpha = rank"):
        api.export(other, out=tmp_path / "out.safetensors", base="pocket")


def test_a_damaged_checkpoint_and_one_of_other_kinds_are_no_step_to_export(done: Done, tmp_path: Path) -> None:
    run = Path(shutil.copytree(done.out, tmp_path / "run"))
    saved = run / "checkpoints" / "step-000005"
    state = json.loads((saved / "state.json").read_text())
    for form, said in ((2, "an earlier version, without alpha"), (3, "holds all weights")):
        (saved / "trainable.safetensors").write_bytes(b"")
        (saved / "state.json").write_text(json.dumps(state | {"format": form}))
        files = [p for p in saved.rglob("*") if p.is_file() and p.name != "manifest.json"]
        manifest = {p.relative_to(saved).as_posix(): weights.file_sha256(p) for p in files}
        (saved / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BaseError, match=said) as refused:
            adapter_path(f"{run}@5")
        assert "resume the run" in refused.value.hint
    (saved / "optimizer.safetensors").unlink()
    with pytest.raises(BaseError, match=r"damaged: .*optimizer"):
        adapter_path(f"{run}@5")


def test_a_run_that_has_not_ended_names_its_steps(done: Done, tmp_path: Path) -> None:
    run = Path(shutil.copytree(done.out, tmp_path / "run", ignore=shutil.ignore_patterns("adapter")))
    with pytest.raises(BaseError, match="its run has not ended") as refused:
        api.inspect(run)
    assert f"{run}@5" in refused.value.hint and "2, 4, 5" in refused.value.hint


def test_a_resumed_run_keeps_candidates_and_sets_one_aside_that_is_another(done: Done, tmp_path: Path) -> None:
    data = done.loaded.recipe.data.path
    loaded = short(data, train__steps=4, train__checkpoint_every=2, sample__every=2, train__keep_last=9)
    out = tmp_path / "mug"
    train(loaded, out)
    before = {step: weights.payload_sha256(adapter_path(f"{out}@{step}")) for step in (2, 4)}
    shutil.rmtree(out / "checkpoints" / "step-000004")
    seen: list[Event] = []
    train(loaded, out, seen.append, resume=True)
    assert {step: weights.payload_sha256(adapter_path(f"{out}@{step}")) for step in (2, 4)} == before
    assert [e.step for e in seen if isinstance(e, Candidate)] == [4]
    assert not [e for e in seen if isinstance(e, Warned) and "another way" in e.text]
    shutil.rmtree(out / "checkpoints" / "step-000004")
    path = adapter_path(f"{out}@4")
    weights.write_tensors({k: t * 2 for k, t in weights.load_tensors(path).items()}, path, {})
    other = weights.payload_sha256(path)
    train(loaded, out, seen.append, resume=True)
    assert weights.payload_sha256(adapter_path(f"{out}@4")) == before[4]
    [kept] = (out / "candidates").glob(f"step-000004-{other[:8]}/*.safetensors")
    assert weights.payload_sha256(kept) == other and list(references.steps(out)) == [2, 4]
    assert (
        len([e for e in seen if isinstance(e, Warned) and "another way" in e.text and str(kept.parent) in e.text]) == 1
    )


@pytest.mark.parametrize("changes", [{}, {"adapter__ranks": {"to_v": 16}}, {"export__dtype": "float16"}])
def test_the_room_for_candidates_is_counted_and_no_file_is_larger(
    changes: dict[str, object], data: Path, tmp_path: Path
) -> None:
    scaled = {**SCALED, "adapter__targets": ("to_q", "to_v"), "train__steps": 2, "sample__every": 1} | changes
    loaded = short(data, **scaled)
    plan = settled("pocket", data, data__resolution=32, **{k: v for k, v in scaled.items()})
    most = candidate_bytes(plan, component_footprints(plan))
    train(loaded, tmp_path / "mug")
    sizes = [file.stat().st_size for file in tmp_path.glob("mug/candidates/*/*.safetensors")]
    assert len(sizes) == candidate_count(plan) == 2
    assert all(size - (1 << 20) < most - (1 << 20) for size in sizes) and most < 8 * max(sizes) + (1 << 20)


def test_a_disk_with_room_for_all_but_the_candidates_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (short(data, train__steps=10_000, sample__every=every) for every in (0, 1))
    asked: list[int] = []
    monkeypatch.setattr(
        os, "posix_fallocate", lambda _, __, size: asked.append(size) or (_ for _ in ()).throw(OSError(28, "x"))
    )
    for loaded in (few, many):
        with pytest.raises(RunError, match="cannot write into"):
            train(loaded, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    plan = settled("pocket", data, data__resolution=32, train__steps=10_000, sample__every=1, adapter__rank=2,
                   adapter__targets=("attn2.to_q", "attn2.to_v"))  # fmt: skip
    if len(asked) == 2:  # else the disk is smaller than that, and was not asked
        rows = component_footprints(plan)
        assert disk_bytes(plan, rows) >= asked[1] >= asked[0] + 10_000 * candidate_bytes(plan, rows)


def test_full_fine_tuning_leaves_no_candidate_and_plan_says_so(data: Path, tmp_path: Path) -> None:
    from finetune.cli import plan_view

    full = settled("pocket", data, data__resolution=64, sample__every=1, adapter={"method": "full"})
    assert candidate_count(full) == 0
    told = plan_view.answers(full, component_footprints(full), None)
    assert "no step in between leaves one" in told["files"]
    lora = settled("pocket", data, data__resolution=64, sample__every=2, train__steps=5)
    assert "2 sampled steps (RUN@2)" in plan_view.answers(lora, component_footprints(lora), None)["files"]
