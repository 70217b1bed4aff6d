"""What the end of a run needs is tried before its first step, and its state stays when the end fails all the same."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.photos import photos
from support.runs import begin, outcome, refused, short, steps, train

from finetune import tensors as weights
from finetune.adapters.change import AdapterState
from finetune.cli.wording import worded_here
from finetune.errors import BaseError, FinetuneError, NotLearnt, RunError, VerifyError
from finetune.events import Event, Finished, Note, Resumed, Stage, Stepped
from finetune.files import layouts
from finetune.proof import card, export
from finetune.sampling.session import Session
from finetune.training import finish, rehearsal, run
from finetune.training import samples as pictures

pytestmark = pytest.mark.whole


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device", "sheet.png")


# --- before the first step --------------------------------------------------------------------------------------------


def loses_a_module(patched: pytest.MonkeyPatch) -> None:
    whole = layouts.universal

    def less(modules: AdapterState, *rest: object) -> dict[str, torch.Tensor]:
        return whole({name: modules[name] for name in list(modules)[1:]}, *rest)  # type: ignore[arg-type]

    patched.setattr(layouts, "universal", less)


def has_no_card(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(card, "model_card", full)


def has_no_sheet(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(pictures, "grid", full)


def shows_nothing(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(Session, "_finite", lambda _, pixels: (_ for _ in ()).throw(VerifyError("not finite", "lower it")))


def has_no_judge(patched: pytest.MonkeyPatch) -> None:
    def damaged(*_: object) -> None:
        raise BaseError("the judge is damaged", "get it again")

    patched.setattr(rehearsal.FeatureExtractor, "load", damaged)


@pytest.mark.parametrize(
    "fault, kind, said",
    [
        (loses_a_module, VerifyError, "was written wrong"),
        (has_no_card, RunError, "No space left"),
        (has_no_sheet, RunError, "No space left"),
        (shows_nothing, VerifyError, "not finite"),
        (has_no_judge, BaseError, "the judge is damaged"),
    ],
)
def test_what_would_fail_at_the_end_fails_before_the_first_step(
    fault: Callable[[pytest.MonkeyPatch], None], kind: type[FinetuneError], said: str, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fault(monkeypatch)
    drawn = photos(tmp_path / "drawn", ((64, 64), (64, 60)), flat=True)
    error = refused(short(drawn, evaluate__count=4), tmp_path / "out", kind)
    assert error.problem.startswith("before the first step: ") and said in error.problem and error.hint
    assert {one.name for one in (tmp_path / "out").iterdir()} == {"events.jsonl"}, "nothing of the trial is left"
    monkeypatch.undo()
    begin(short(data), tmp_path / "out", 2)  # the same folder is free


def test_the_trial_changes_no_number_of_the_run_and_leaves_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_it = begin(short(data, data__caption_dropout=0.3), tmp_path / "with", 4)
    monkeypatch.setattr(run, "rehearse", lambda _: None)
    without = begin(short(data, data__caption_dropout=0.3), tmp_path / "without", 4)
    assert steps(with_it) == steps(without)
    assert not list((tmp_path / "with").glob("**/.tryout*")) and not (tmp_path / "with/adapter").exists()


# --- at the end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["export", "sheet", "disk"])
def test_an_end_that_fails_keeps_the_state_and_says_how_to_export_it(
    where: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, kind = tmp_path / "out", RunError if where == "disk" else VerifyError

    def fails(*_: object, **__: object) -> None:
        raise VerifyError("it does not do what was trained", "please report this")

    place = {"export": (finish, "verify"), "sheet": (finish, "final_sheet"), "disk": (finish, "final_sheet")}[where]
    monkeypatch.setattr(*place, full if where == "disk" else fails)
    with pytest.raises(kind) as failed:
        train(short(data), out)
    assert failed.value.other is not None
    said, step = failed.value.other
    assert worded_here(step) == f"finetune export --from {out}@4 --base pocket" and "adapter" in said
    assert outcome(out).startswith("failed")
    assert export.convert(Path(f"{out}@4"), "universal", tmp_path / "kept.safetensors", "pocket") < 1e-5
    monkeypatch.undo()
    assert isinstance(train(short(data), out, resume=True), Finished)


def test_full_fine_tuning_whose_end_fails_says_how_to_resume(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.recipe import FullWeights

    monkeypatch.setattr(finish, "save", full)
    with pytest.raises(RunError, match=r"its result cannot be written: sheet\.png: No space left") as failed:
        train(short(data, adapter=FullWeights(components=("text_encoder",)), train__steps=1), tmp_path / "out")
    assert failed.value.action is not None and failed.value.action.arguments["resume"] is True


# --- while it goes on -------------------------------------------------------------------------------------------------


def test_a_folder_that_is_removed_while_the_run_goes_on_gets_its_state_back(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def listen(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 3:
            shutil.rmtree(out)

    with pytest.raises(RunError, match="No such file") as stopped:
        train(short(data, train__steps=6), out, listen)
    assert stopped.value.action is not None and stopped.value.action.arguments["out"] == out
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000004"]
    unbroken = tmp_path / "unbroken"
    train(short(data, train__steps=6), unbroken)
    train(short(data, train__steps=6), out, resume=True)
    assert weights.payload_sha256(out / "adapter/mug.safetensors") == weights.payload_sha256(
        unbroken / "adapter/mug.safetensors"
    )


def test_a_folder_that_cannot_be_written_any_more_has_its_state_rescued_beside(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def listen(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 3:
            shutil.rmtree(out)
            out.touch()  # as a disk that was taken away: nothing can be written there

    with pytest.raises(RunError, match="the state of step 4 is in") as stopped:
        train(short(data, train__steps=6), out, listen)
    assert stopped.value.action is not None
    rescued = stopped.value.action.arguments["out"]
    assert isinstance(rescued, Path) and rescued.parent == tmp_path
    seen: list[Event] = []
    result = train(short(data, train__steps=6), rescued, seen.append, resume=True)
    assert [e.step for e in seen if isinstance(e, Resumed)] == [4] and result.step == 6


def test_a_state_that_fits_nowhere_says_so_and_no_more(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.training import checkpoint

    begin(short(data, train__steps=6), tmp_path / "out", 2)
    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    with pytest.raises(RunError, match=r"cannot save step 4 in .*: No space left on device") as stopped:
        train(short(data, train__steps=6), tmp_path / "out", resume=True)
    assert stopped.value.hint == "free some space, then resume" and "the state" not in stopped.value.problem


def test_pictures_on_the_way_that_cannot_be_written_cost_no_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = pictures.write_step
    monkeypatch.setattr(pictures, "write_step", lambda *a: full() if a[2] == 3 else write(*a))
    with pytest.raises(RunError, match=r"cannot go on: sheet\.png: No space left"):
        train(short(data, sample__every=3, train__checkpoint_every=100, train__steps=5), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out/checkpoints").iterdir()] == ["step-000003"]
    assert outcome(tmp_path / "out").startswith("failed cannot go on")


# --- a run that has ended ---------------------------------------------------------------------------------------------


def test_a_finished_run_says_so_and_does_nothing_again(data: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", list[Event]()
    first = train(short(data), out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = train(short(data), out, seen.append, resume=True)
    assert (again.path, again.sheet, again.step) == (first.path, first.sheet, 4)
    assert again.page == first.page == out / "report.html"
    assert [type(event) for event in seen] == [Note, Finished] and "has ended at step 4" in seen[0][0]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    shutil.rmtree(out / "adapter")
    assert train(short(data), out, resume=True).path == first.path and first.path.is_file()


def test_a_finished_run_of_which_more_is_asked_goes_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(short(data), out)
    for more in ({"train__steps": 6}, {"train__steps": 6, "export__layouts": ("universal", "diffusers")}):
        seen: list[Event] = []
        train(short(data, **more), out, seen.append, resume=True)
        assert [e for e in seen if isinstance(e, Stage) and e.name == "proving"], more
    assert (out / "adapter/mug-diffusers.safetensors").is_file()


def test_a_run_that_ended_without_learning_ends_so_again_without_work(data: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", list[Event]()
    train(short(data), out)
    told = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(told | {"outcome": "not learnt", "reason": "seen in 0 of 10"}))
    with pytest.raises(NotLearnt, match="seen in 0 of 10"):
        train(short(data), out, seen.append, resume=True)
    assert not seen
