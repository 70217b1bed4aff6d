"""A run that is killed, damaged, changed or finished, and goes on. As a script it hosts the runs that are killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from support import ROOT, TESTS
from support.photos import photos
from support.runs import Stop, begin, saved_bytes, short, steps, stop_if, train

from finetune import families, recipe
from finetune import resources as shipped
from finetune import tensors as weights
from finetune.errors import RunError
from finetune.evaluation import effect as evaluate
from finetune.events import Event, Resumed, Stepped, Warned
from finetune.machine import open_machine
from finetune.planning import plan as planning
from finetune.ranks import Ranks
from finetune.recipe import DoRA, FullWeights, Loaded
from finetune.training import checkpoint
from finetune.training.batches import Batches, StepBatches
from finetune.training.folder import RunFolder

pytestmark = [pytest.mark.filterwarnings("ignore:.*:UserWarning:bitsandbytes"), pytest.mark.whole]

SEED = 20


save = RunFolder.save


def lose(loaded: Loaded, out: Path, step: int) -> None:
    """Train, and die after that step, before it can be saved."""
    with pytest.raises(Stop), pytest.MonkeyPatch.context() as patched:
        patched.setattr(RunFolder, "save", lambda *a: None if a[1].step == step else save(*a))
        train(loaded, out, lambda e: stop_if(isinstance(e, Stepped) and e.step == step))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("photos") / "raw", flat=True)


# --- kill -9 --------------------------------------------------------------------------------------------------------


LENGTH = 8
COMPONENTS = {"unet": ("denoiser",), "both": ("denoiser", "text_encoder")}


class Death(NamedTuple):
    step: int
    how: str


def deaths(components: str) -> list[Death]:
    """Five random steps, each before its checkpoint, and one inside the saving; in the order they happen."""
    chance = random.Random(f"{SEED} {components}")
    found = [Death(step, "after the step") for step in chance.sample(range(1, LENGTH + 1), 5)]
    found.append(
        Death(chance.choice((4, 6)), "with half the optimizer written" if components == "unet" else "unrenamed")
    )
    return sorted(found)


def everything(root: Path, components: str) -> Loaded:
    """All that chance decides, in one recipe: buckets, accumulation, captions dropped, mirrored, cropped, dropout."""
    return short(
        root / "photos", data__resolution=48, data__caption_dropout=0.4, data__flip=True, data__crop="random",
        adapter__components=COMPONENTS[components], adapter__dropout=0.1, optimizer__schedule="cosine",
        optimizer__warmup_steps=3, train__batch=2, train__accumulate=2, train__steps=LENGTH,
        train__ema=0.6,
    )  # fmt: skip


def host(root: Path) -> None:
    """Imports once, then forks a child for each life of each run; the two components side by side."""
    torch.set_num_threads(1)
    evaluate.LEVELS = (0.5,)
    families.load("pocket").pipeline()
    open_machine("fp32")
    both = [os.fork() or _exit(lambda c=components: whole_and_killed(root, c)) for components in COMPONENTS]
    for child in both:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def whole_and_killed(root: Path, components: str) -> None:
    loaded, folder = everything(root, components), root / components
    folder.mkdir()
    ends = [_in_child(lambda: live(loaded, folder, "whole", False, None))]
    resume = False
    for death in deaths(components):
        ends.append(_in_child(lambda d=death, r=resume: live(loaded, folder, "killed", r, d)))
        resume = True
    ends.append(_in_child(lambda: live(loaded, folder, "killed", True, None)))
    (folder / "ends.json").write_text(json.dumps(ends))


def live(loaded: Loaded, folder: Path, name: str, resume: bool, death: Death | None) -> None:
    """One life of a run: until its death, if it has one."""
    shown: dict[int, list[object]] = {}

    def watched(batches: Batches, step: int, ranks: Ranks, even: bool = False) -> StepBatches:
        share = whole(batches, step, ranks, even)
        shown[step + 1] = [(batch.names, batch.captions, batch.t.tolist()) for batch, _ in share.pairs]
        return share

    whole, Batches.step = Batches.step, watched  # type: ignore[method-assign]

    def listen(event: Event) -> None:
        if isinstance(event, Stepped):
            line = [event.step, event.loss, event.grad_norm, event.rates, shown[event.step]]
            with (folder / f"{name}.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            if death == (event.step, "after the step"):
                die()

    if death:
        arm(death)
    train(loaded, folder / name, listen, resume)


def arm(death: Death) -> None:
    """Die inside the saving of that step."""
    beside = f".step-{death.step:06d}."
    write, rename = weights.write_bytes, Path.rename

    def half(content: bytes, path: Path, flush: bool = True) -> None:
        if path.parent.name.startswith(beside) and path.name == "optimizer.safetensors":
            path.write_bytes(content[: len(content) // 2])
            die()
        write(content, path, flush)

    def late(path: Path, target: Path) -> Path:
        return die() if path.name.startswith(beside) else rename(path, target)

    if death.how == "with half the optimizer written":
        weights.write_bytes = half
    elif death.how == "unrenamed":
        Path.rename = late  # type: ignore[method-assign]


def die() -> Path:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("alive")


def _in_child(life: Callable[[], None]) -> int:
    """0, 1, or minus the signal that ended it."""
    child = os.fork() or _exit(life)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _exit(life: Callable[[], None]) -> int:
    """In a child: live, and leave."""
    status = 1
    try:
        life()
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the child must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("killed")
    photos(root / "photos", flat=True)
    path = os.pathsep.join([str(TESTS), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, __file__, str(root)], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (root / "said").write_text(done.stderr)
    return root


@pytest.mark.parametrize("components", COMPONENTS)
def test_killed_at_five_steps_and_while_saving_a_run_ends_with_the_same_bytes(killed: Path, components: str) -> None:
    planned = deaths(components)
    print(f"killed {[f'{d.how} {d.step}' for d in planned]}")  # noqa: T201 - shown when the test fails
    ends = json.loads((killed / components / "ends.json").read_text())
    assert ends == [0, *[-signal.SIGKILL] * len(planned), 0], (killed / "said").read_text()
    whole, resumed = (killed / components / name for name in ("whole", "killed"))
    assert weights.payload_sha256(resumed / "adapter" / "mug.safetensors") == weights.payload_sha256(
        whole / "adapter" / "mug.safetensors"
    )
    assert saved_bytes(resumed, LENGTH) == saved_bytes(whole, LENGTH)
    assert len(planning.resolve_plan(everything(killed, components)).train.schedule.buckets) == 3


@pytest.mark.parametrize("components", COMPONENTS)
def test_after_a_kill_rates_samples_and_losses_are_those_of_the_unbroken_run(killed: Path, components: str) -> None:
    whole, resumed = (
        [json.loads(line) for line in (killed / components / f"{name}.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    )
    assert [step for step, *_ in whole] == list(range(1, LENGTH + 1))
    assert len(resumed) > LENGTH  # work was lost, and done again
    assert {step for step, *_ in resumed} == set(range(1, LENGTH + 1))
    for line in resumed:
        assert line == whole[line[0] - 1]


def test_after_a_kill_nothing_half_written_is_left(killed: Path) -> None:
    for components in COMPONENTS:
        left = sorted(p.name for p in (killed / components / "killed" / "checkpoints").iterdir())
        assert left == [f"step-{LENGTH - 2:06d}", f"step-{LENGTH:06d}"]
        assert not list((killed / components).rglob(".*.part"))


# --- the same, for each kind of state -------------------------------------------------------------------------------


FULL = FullWeights(components=("text_encoder",))
KINDS: dict[str, dict[str, object]] = {
    # 128 x 64 is the least that bitsandbytes keeps in 8 bits
    "adamw8bit": {"optimizer__name": "adamw8bit", "adapter__rank": 128},
    "dropout": {"adapter__dropout": 0.5},
    "linear after warm-up": {"optimizer__schedule": "linear", "optimizer__warmup_steps": 2},
    "accumulating an epoch's tail": {"train__epochs": 2, "train__steps": None, "train__accumulate": 4},
    "full": {"adapter": FULL, "optimizer__learning_rate": 1e-4},
    "dora": {"adapter": DoRA(rank=2, targets=("attn2.to_q", "attn2.to_v")), "export__layouts": ("diffusers",)},
    "full, 8 bits": {"adapter": FULL, "optimizer__learning_rate": 1e-4, "optimizer__name": "adamw8bit"},
    "a base in 4 bits": {"train__base_bits": 4},
    "prior by own prediction": {"prior__mode": "own_prediction"},
    "min-snr, checkpointed gradients": {"objective__min_snr": 5.0, "train__gradient_checkpointing": True},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_an_unbroken_one(kind: str, data: Path, tmp_path: Path) -> None:
    loaded = short(data, **KINDS[kind])
    last = planning.resolve_plan(loaded).steps
    unbroken = begin(loaded, tmp_path / "whole", last)
    lose(loaded, tmp_path / "lost", last - 1 if last % 2 == 0 else last)
    # as the printed command does: by the recipe in the run's folder
    again = recipe.load(tmp_path / "lost" / "recipe.toml")
    resumed = begin(again, tmp_path / "lost", last, resume=True)
    assert any(isinstance(e, Resumed) and 0 < e.step < last for e in resumed)
    assert steps(resumed) == steps(unbroken)[-len(steps(resumed)) :]
    assert saved_bytes(tmp_path / "lost", last) == saved_bytes(tmp_path / "whole", last)


def test_eight_bit_state_is_saved_in_eight_bits(data: Path, tmp_path: Path) -> None:
    begin(short(data, **KINDS["adamw8bit"]), tmp_path / "out", 2)
    header = weights.read_header(tmp_path / "out" / "checkpoints" / "step-000002" / "optimizer.safetensors")
    assert "U8" in header.dtypes.values()


def test_more_steps_go_on_as_if_they_had_been_asked_for_at_first(data: Path, tmp_path: Path) -> None:
    begin(short(data, train__steps=6), tmp_path / "whole", 6)
    begin(short(data, train__steps=4), tmp_path / "out", 4)
    begin(short(data, train__steps=6), tmp_path / "out", 6, resume=True)
    assert saved_bytes(tmp_path / "out", 6) == saved_bytes(tmp_path / "whole", 6)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps that died after saving step 4."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    begin(short(data, train__steps=6), out, 4)
    return out


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "copy"))


def other_base(folder: Path) -> Path:
    """pocket, with one number of its autoencoder changed."""
    base = Path(shutil.copytree(shipped.POCKET, folder))
    file = base / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return base


CHANGES: dict[str, tuple[str, dict[str, object]]] = {
    "the base": ("base: was", {}),
    "a caption": ("dataset: was", {}),
    "targets": ("adapter.targets: was", {"adapter__targets": ("attn2.to_q",)}),
    "the rank": ("adapter.rank: was 2, now 4", {"adapter__rank": 4}),
    "the seed": ("train.seed: was 0, now 1", {"train__seed": 1}),
    "the batch": ("train.batch: was 1, now 2", {"train__batch": 2}),
    "the learning rate": ("optimizer.learning_rate: was 0.01, now 0.001", {"optimizer__learning_rate": 1e-3}),
    "the crop": ("data.crop: was center, now random", {"data__crop": "random"}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_resuming_with_another_recipe_is_refused_and_loses_nothing(
    what: str, copy: Path, data: Path, tmp_path: Path
) -> None:
    said, changes = CHANGES[what]
    base = str(other_base(tmp_path / "base")) if what == "the base" else "pocket"
    if what == "a caption":
        data = Path(shutil.copytree(data, tmp_path / "data"))
        (data / "3.txt").write_text("a sks jug")
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    with pytest.raises(RunError) as refused:
        train(short(data, base, train__steps=6, **changes), copy, resume=True)
    assert said in refused.value.problem
    assert refused.value.action is not None and refused.value.action.name == "train"
    assert "recipe.toml" in refused.value.advice and "resume=True" in refused.value.advice
    after = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    log = copy / "events.jsonl"
    assert after.pop(log).startswith(before.pop(log)) and after == before


def test_fewer_steps_than_were_taken_are_refused(copy: Path, data: Path) -> None:
    with pytest.raises(RunError, match=r"train\.steps = 3, and 4 steps"):
        train(short(data, train__steps=3), copy, resume=True)


def test_nothing_to_resume_is_said(tmp_path: Path, data: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        train(short(data), tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


# --- damage ---------------------------------------------------------------------------------------------------------


def flip(file: Path, at: int = -100) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    [
        "unet/adapter_model.safetensors",
        "unet/adapter_config.json",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    ],
)
def test_a_checkpoint_with_a_flipped_byte_is_left_aside_for_the_one_before(
    name: str, copy: Path, stopped: Path, data: Path, tmp_path: Path
) -> None:
    flip(copy / "checkpoints" / "step-000004" / name)
    seen = begin(short(data, train__steps=6), copy, 4, resume=True)
    warned = [e.text for e in seen if isinstance(e, Warned)]
    assert len(warned) == 1 and "step-000004" in warned[0]
    assert [e.step for e in seen if isinstance(e, Resumed)] == [2]
    assert saved_bytes(copy, 4) == saved_bytes(stopped, 4)  # made again, byte for byte
    assert checkpoint.newest(copy / "checkpoints")[1] == []


def test_when_every_checkpoint_is_damaged_the_run_says_so(copy: Path, data: Path) -> None:
    for folder in (copy / "checkpoints").iterdir():
        flip(folder / "unet" / "adapter_model.safetensors")
    with pytest.raises(RunError, match="no whole checkpoint is left") as refused:
        train(short(data, train__steps=6), copy, resume=True)
    assert "another `out`" in refused.value.hint


def test_a_run_that_died_before_its_first_checkpoint_starts_at_step_0(copy: Path, stopped: Path, data: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    seen = begin(short(data, train__steps=6), copy, 4, resume=True)
    assert [e.step for e in seen if isinstance(e, Stepped)] == [1, 2, 3, 4]
    assert saved_bytes(copy, 4) == saved_bytes(stopped, 4)


if __name__ == "__main__":
    host(Path(sys.argv[1]))
