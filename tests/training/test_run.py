"""A whole run: where it may write, what stops it, what it leaves, and that looking at it changes nothing."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from support.bases import tiny_base
from support.runs import (
    Done,
    Stop,
    begin,
    contents,
    outcome,
    refused,
    saved_bytes,
    short,
    steps,
    stop_if,
    train,
    training_flags,
)
from torch.testing import assert_close

from finetune import recipe
from finetune import resources as shipped
from finetune import tensors as weights
from finetune.cli import training_view
from finetune.cli.options import Output
from finetune.errors import RunError
from finetune.events import Event, Sampled, Stepped, Validated
from finetune.planning import plan as planning
from finetune.proof import export
from finetune.recipe import FullWeights, LoRA
from finetune.training import checkpoint, run
from finetune.training.finish import final_sheet

# --- what it leaves -------------------------------------------------------------------------------------------------


def test_a_finished_run_leaves_the_folders_that_are_promised(finished: Done) -> None:
    assert outcome(finished.out) == "done"
    last = f"checkpoints/step-{finished.result.step:06d}"
    for name in ("recipe.toml", "run.json", "sheet.png", "adapter/mug.safetensors", "adapter/mug.json", "adapter/peft",
                 "adapter/README.md", last, "samples/step-000000/00.png",
                 "samples/step-000000.png", "samples/step-000040.png"):  # fmt: skip
        assert (finished.out / name).exists(), name
    assert not list(finished.out.rglob(".*"))


def test_resuming_a_finished_run_exports_the_same_file_again(finished: Done, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished.out, tmp_path / "again"))
    shutil.rmtree(out / "adapter")
    events: list[Event] = []
    result = train(finished.loaded, out, events.append, resume=True)
    assert weights.payload_sha256(result.path) == weights.payload_sha256(finished.result.path)
    assert not [e for e in events if isinstance(e, Stepped)]
    assert outcome(out) == "done"


# --- where it may write ---------------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_refused_with_both_ways_out_and_untouched(finished: Done) -> None:
    before = contents(finished.out)
    error = refused(finished.loaded, finished.out, RunError)
    assert "holds a run already" in error.problem
    assert "`resume`" in error.hint and f"{finished.out}-2" in error.hint
    assert contents(finished.out) == before


def test_by_the_command_too_nothing_is_written(finished: Done) -> None:
    before = contents(finished.out)
    with pytest.raises(RunError):
        training_view.train(finished.loaded, finished.out, False, Output())
    assert contents(finished.out) == before


def test_a_folder_with_something_else_in_it_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    error = refused(short(data), tmp_path, RunError)
    assert "is not empty" in error.problem and "another `out`" in error.hint
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize("inside", ["", "deeper/still"])
def test_a_file_in_place_of_the_folder_is_refused(data: Path, tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("mine")
    error = refused(short(data), tmp_path / "file" / inside, RunError)
    assert str(tmp_path / "file") in error.problem and "another `out`" in error.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(data: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "cannot write into" in refused(short(data), tmp_path / "out", RunError).problem
    tmp_path.chmod(0o700)


def full_by_count(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5, 5))  # type: ignore[attr-defined]


def full_by_trial(patched: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    patched.setattr(os, "posix_fallocate", no_room)


def read_only(patched: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    patched.setattr(Path, "mkdir", refuse)


@pytest.mark.parametrize("disk", [full_by_count, full_by_trial, read_only])
def test_a_disk_without_room_is_found_before_the_first_step(
    disk: Callable[[pytest.MonkeyPatch], None], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = short(data)
    with monkeypatch.context() as patched:
        disk(patched)
        error = refused(loaded, tmp_path / "out", RunError)
    assert str(tmp_path / "out") in error.problem and "free some space" in error.hint
    assert not contents(tmp_path)


def test_a_disk_that_fills_while_training_costs_no_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "out", weights.write_bytes

    def full_at_4(content: bytes, path: Path, flush: bool = True) -> None:
        if path.parent.name.startswith(".step-000004") and path.name == "optimizer.safetensors":
            raise OSError(28, "No space left on device")
        write(content, path, flush)

    monkeypatch.setattr(weights, "write_bytes", full_at_4)
    with pytest.raises(RunError, match=r"cannot save step 4 .*No space left") as stopped:
        train(short(data, train__steps=6), out)
    assert "resume=True" in stopped.value.advice
    found, damage = checkpoint.newest(out / "checkpoints")
    assert found is not None and found.step == 2 and not damage
    assert outcome(out).startswith("failed cannot save step 4")


# --- looking changes nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "full"])
def test_sampling_and_validation_do_not_disturb_training(
    method: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same losses, same bytes; modes, dtypes, what is trained and torch's random state as they were."""
    both = ("denoiser", "text_encoder")
    adapter = LoRA(rank=2, dropout=0.3, components=both) if method == "lora" else FullWeights(components=both)
    base = "pocket" if method == "lora" else str(tiny_base(tmp_path / "base", "sd15"))
    loaded = short(data, base, adapter=adapter, validation__count=1, optimizer__learning_rate=1e-3)
    if method == "full":
        loaded = loaded._replace(recipe=recipe.replace(loaded.recipe, data__resolution=64))
    looked = loaded._replace(recipe=recipe.replace(loaded.recipe, validation__every=1, sample__every=1))
    blind = loaded._replace(recipe=recipe.replace(loaded.recipe, validation__every=1000, sample__every=0))
    observe, observed = run.observe, []

    def watched(one: run.Run, step: int) -> Iterator[Event]:
        before = training_flags(one.family), torch.get_rng_state()
        yield from observe(one, step)
        assert training_flags(one.family) == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
        observed.append(1)

    monkeypatch.setattr(run, "observe", watched)
    seen = [begin(one, tmp_path / name, 4) for name, one in (("looked", looked), ("blind", blind))]
    assert len([e for e in seen[0] if isinstance(e, Sampled | Validated)]) == 8  # at steps 0 to 3
    assert len([e for e in seen[1] if isinstance(e, Sampled)]) == 0
    assert steps(seen[0]) == steps(seen[1])
    assert saved_bytes(tmp_path / "looked", 4) == saved_bytes(tmp_path / "blind", 4)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_the_first_sample_is_the_bases_own_picture(finished: Done) -> None:
    """As stock diffusers makes it with the usual guidance, and as the final sheet shows it."""
    samples = finished.out / "samples"
    first = pixels(samples / "step-000000" / "00.png")
    assert np.array_equal(first, pixels(samples / "final-base" / "00.png"))
    stock = StableDiffusionPipeline.from_pretrained(shipped.POCKET).to(torch.float32)
    stock.set_progress_bar_config(disable=True)
    wanted = finished.loaded.recipe.sample
    made = stock(
        wanted.prompts[0], num_inference_steps=wanted.steps, guidance_scale=7.5, width=32, height=32,
        generator=torch.Generator().manual_seed(wanted.seed),
    ).images[0]  # fmt: skip
    assert np.abs(first - np.asarray(made.convert("RGB")).astype(int)).max() <= 1


def test_the_last_sample_of_the_live_model_is_what_the_file_draws(finished: Done) -> None:
    samples = finished.out / "samples"
    live, filed = (pixels(samples / name / "00.png") for name in (f"step-{finished.result.step:06d}", "final-mug"))
    base = pixels(samples / "final-base" / "00.png")
    assert np.abs(filed - base).max() > 10  # it did something
    assert np.abs(live - filed).max() <= 1


def test_the_final_adapter_row_is_drawn_from_the_exported_file(finished: Done, tmp_path: Path) -> None:
    """Another file in its place gives another picture."""
    file = tmp_path / "adapter" / "mug.safetensors"
    file.parent.mkdir()
    tensors = {n: t * 3 if n.endswith("lora_up.weight") else t for n, t in load_file(finished.result.path).items()}
    weights.write_tensors(tensors, file, {})
    plan = planning.resolve_plan(finished.loaded)
    final_sheet(plan, file, tmp_path, 4)
    shown = pixels(tmp_path / "samples" / "final-mug" / "00.png")
    assert not np.array_equal(shown, pixels(finished.out / "samples" / "final-mug" / "00.png"))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.text["adapter_sha256"] == weights.file_sha256(file)  # type: ignore[attr-defined]


# --- full -----------------------------------------------------------------------------------------------------------


def test_all_of_a_denoiser_is_trained_saved_as_a_pipeline_and_read_back_equal(data: Path, tmp_path: Path) -> None:
    base, out = str(tiny_base(tmp_path / "base", "sd15")), tmp_path / "out"
    loaded = short(data, base, adapter=FullWeights(), optimizer__learning_rate=1e-3, data__resolution=64)
    result = train(loaded, out)
    assert result.path == out / "adapter" / "mug"
    again = UNet2DConditionModel.from_pretrained(result.path, subfolder="unet").state_dict()
    trained = load_file(out / "checkpoints" / "step-000004" / "trainable.safetensors")
    assert {f"unet.{n}" for n in again} == set(trained)
    assert_close({f"unet.{n}": t for n, t in again.items()}, trained, rtol=0, atol=0)
    own = UNet2DConditionModel.from_pretrained(base, subfolder="unet").state_dict()
    assert not (out / "checkpoints" / "step-000004" / "mean.safetensors").exists()
    assert not [p for p in result.path.rglob("*.json") if str(tmp_path) in p.read_text(encoding="utf-8")]
    text_file = result.path / "text_encoder" / "model.safetensors"
    # as transformers >= 5.6 writes an encoder that was made under it
    weights.write_tensors({n.removeprefix("text_model."): t for n, t in load_file(text_file).items()}, text_file, {})
    export.for_others(result.path)
    assert all(name.startswith("text_model.") for name in load_file(text_file))
    assert not any(torch.equal(own[n], t) for n, t in again.items() if t.ndim > 1)
    resumed = tmp_path / "resumed"
    with pytest.raises(Stop):
        train(loaded, resumed, lambda e: stop_if(isinstance(e, Stepped) and e.step == 3))
    begin(recipe.load(resumed / "recipe.toml"), resumed, 4, resume=True)
    assert saved_bytes(resumed, 4) == saved_bytes(out, 4)


def test_with_ema_it_is_the_mean_that_is_exported_and_the_last_weights_that_are_resumed(
    data: Path, tmp_path: Path
) -> None:
    base, out = str(tiny_base(tmp_path / "base", "sd15")), tmp_path / "out"
    loaded = short(
        data, base, adapter=FullWeights(), optimizer__learning_rate=1e-3, data__resolution=64, train__ema=0.9
    )
    result = train(loaded, out)
    written = UNet2DConditionModel.from_pretrained(result.path, subfolder="unet").state_dict()
    kept = out / "checkpoints" / "step-000004"
    mean, last = load_file(kept / "mean.safetensors"), load_file(kept / "trainable.safetensors")
    assert_close({f"unet.{n}": t for n, t in written.items()}, mean, rtol=0, atol=0)
    assert not any(torch.equal(mean[n], last[n]) for n in mean)


def test_with_ema_samples_on_the_way_show_the_mean(data: Path, tmp_path: Path) -> None:
    """The last of them is what the exported file draws, and the weights trained on are back in place after it."""
    loaded = short(data, train__ema=0.9, sample__every=2, optimizer__learning_rate=1e-2)
    out = tmp_path / "out"
    train(loaded, out)
    samples = out / "samples"
    live, filed = (pixels(samples / name / "00.png") for name in ("step-000004", "final-mug"))
    assert np.abs(filed - pixels(samples / "final-base" / "00.png")).max() > 10
    assert np.abs(live - filed).max() <= 1
    blind = short(data, train__ema=0.9, optimizer__learning_rate=1e-2)
    train(blind, tmp_path / "blind")
    assert saved_bytes(out, 4) == saved_bytes(tmp_path / "blind", 4)
