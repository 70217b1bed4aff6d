"""Memory that ends at any stage of any command: exit code 3, the stage, and what to turn first."""

from pathlib import Path

import diffusers
import pytest
import torch
from support.hostile import attempt
from support.photos import photos
from support.runs import short, train

from finetune import families, shortage
from finetune.errors import BaseError, DataError, MemoryShortage
from finetune.families import parts
from finetune.families.sd import StableDiffusion
from finetune.proof import export, outputs
from finetune.sampling.session import Session
from finetune.training import begin, candidates, finish, levers
from finetune.training import loop as trainer
from finetune.training.batches import Batches

DEVICE = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
ERRORS = (
    DEVICE, MemoryError(), OSError(12, "Cannot allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)  # fmt: skip
OTHERS = (RuntimeError("shapes do not match"), OSError(28, "No space left"), ValueError("out of memory"))


def short_of_memory(*_: object, **__: object) -> None:
    raise DEVICE


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: str(e)[:30])
def test_all_that_devices_and_allocators_say_is_known(error: Exception) -> None:
    with (
        pytest.raises(MemoryShortage, match=r"^out of memory while it is tried") as raised,
        shortage.out_of_memory("while it is tried", "turn this"),
    ):
        raise error
    assert raised.value.exit_code == 3 and raised.value.hint == "turn this"


def test_what_torch_itself_says_when_a_cpu_has_no_more_is_known() -> None:
    with pytest.raises(MemoryShortage, match="allocate memory"), shortage.out_of_memory():
        torch.empty(1 << 50)


@pytest.mark.parametrize("error", OTHERS, ids=lambda e: str(e)[:30])
def test_nothing_else_is_taken_for_want_of_memory(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error).replace("[", r"\[")), shortage.out_of_memory():
        raise error


def test_a_base_that_cannot_be_loaded_for_want_of_memory_is_not_to_be_fetched_again() -> None:
    with pytest.raises(MemoryShortage) as raised, shortage.out_of_memory("while the base is loaded", "less"):
        try:
            raise DEVICE
        except RuntimeError as e:
            raise BaseError("unet cannot be loaded", "fetch the base again") from e
    assert raised.value.hint == "less" and "2.00 GiB" in raised.value.problem
    with pytest.raises(DataError), shortage.out_of_memory():
        try:
            raise MemoryError
        except MemoryError as e:
            raise DataError("a picture claims to be too large") from e


def test_what_is_turned_already_is_not_named() -> None:
    config = short(Path("x")).recipe
    assert levers.training(config).startswith("in this order: train.gradient_checkpointing = true; train.precision")
    turned = short(Path("x"), train__gradient_checkpointing=True, train__batch=4, train__precision="bf16").recipe
    assert levers.training(turned).startswith("in this order: a smaller train.batch with a larger train.accumulate; ")


STAGES: dict[str, tuple[object, str, str, str]] = {
    # what fails, where the error says that it was, and the lever that stands first
    "loading": (families, "load", "while the base is loaded", "to load less: train.base_bits = 4"),
    "opening": (StableDiffusion, "load", "while the base is loaded", "to load less: train.base_bits = 4"),
    "encoding images": (StableDiffusion, "encode_images", "while the dataset is encoded", "to encode"),
    "encoding captions": (StableDiffusion, "encode", "while the dataset is encoded", "to encode"),
    "attaching": (begin, "attach_adapter", "while the base is made ready", "in this order: train.gradient"),
    "pre-flight": (trainer, "accumulate", "in one step at the largest bucket", "in this order: train.gradient"),
    "step": (Batches, "step", "at step 1", "in this order: train.gradient_checkpointing"),
    "candidate": (candidates, "write_candidate", "while step 2 is looked at", "for the pictures"),
    "samples": (Session, "generate_many", "while step 0 is looked at", "for the pictures"),
    "verifying": (outputs, "compute", "while the result is checked", "for the pictures"),
    "finishing": (finish, "final_sheet", "while the result is checked", "for the pictures"),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("photos") / "raw", ((64, 64), (64, 60)), flat=True)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_says_where_it_ran_out_of_memory_and_what_to_turn(
    stage: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, name, where, first = STAGES[stage]
    monkeypatch.setattr(place, name, short_of_memory)
    loaded = short(data, data__cache=tmp_path / "cache", sample__every=2, train__steps=2)
    with pytest.raises(MemoryShortage) as raised:
        train(loaded, tmp_path / "out")
    assert raised.value.problem.startswith(f"out of memory {where}: CUDA out of memory"), raised.value.problem
    assert raised.value.hint.startswith(first), raised.value.hint


COMMANDS: dict[str, tuple[list[str], object, str, str]] = {
    "plan --measure": (["plan", "mine.toml", "--measure"], begin, "open_base", "while the base is loaded"),
    "sample, opening": (["sample", "--base", "pocket", "--prompt", "a cup", "--out", "new"], families, "load",
                        "while the base is opened"),
    "sample": (["sample", "--base", "pocket", "--prompt", "a cup", "--out", "new"],
               diffusers.StableDiffusionPipeline, "__call__", "while pictures are generated"),
    "verify": (["verify", "mug.safetensors", "--base", "pocket"], families, "load", "while the file is held against"),
    "verify, diffusers": (["verify", "mug.safetensors", "--base", "pocket"], diffusers.StableDiffusionPipeline,
                          "load_lora_weights", "while the file is held against"),
    "export merged": (["export", "--from", "mug.safetensors", "--layout", "merged", "--base", "pocket", "--out", "new"],
                      families, "load", "while the adapter is merged"),
    "evaluate": (["evaluate", "mug.safetensors", "--base", "pocket", "--data", "photos"], Session, "open", ""),
    "compare": (["compare", "mug.safetensors", "--base", "pocket", "--prompt", "a cup", "--out", "new"], Session,
                "open", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_that_memory_ended_and_exits_3(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, module, function, where = COMMANDS[name]
    monkeypatch.setattr(module, function, short_of_memory)
    found = attempt(arguments, place)
    assert found.code == 3 and not found.traceback, found.text
    assert f"error: out of memory {where}".strip() in found.err and "try: " in found.err


def test_the_library_says_so_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import finetune

    monkeypatch.setattr(export, "convert", short_of_memory)
    with pytest.raises(MemoryShortage):
        finetune.export(place / "mug.safetensors", out=place / "new.safetensors")


def test_a_part_that_does_not_fit_is_not_called_damaged(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What diffusers raises while it reads a part."""
    monkeypatch.setattr("diffusers.UNet2DConditionModel.from_pretrained", short_of_memory)
    with pytest.raises(BaseError) as raised:
        parts.from_pretrained(diffusers.UNet2DConditionModel, place / "base", "unet", torch.float32)
    assert shortage.is_shortage(raised.value)
    found = attempt(["sample", "--base", "base", "--prompt", "a cup", "--out", "new"], place)
    assert found.code == 3 and "fetch the base again" not in found.err, found.text
