"""Events reach people and programs: the screen, events.jsonl, TensorBoard."""

import io
import json
import math
import re
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.events import (
    Advanced,
    CaptionFit,
    Evaluated,
    Event,
    Finished,
    Note,
    Resumed,
    Sampled,
    Saved,
    Stage,
    Stepped,
    TrainingEffect,
    Validated,
    Verified,
    Warned,
)  # fmt: skip
from finetune.reporting.jsonl import JsonLines
from finetune.reporting.screen import Screen
from finetune.reporting.tensorboard import TensorBoard

pytestmark = pytest.mark.filterwarnings("ignore:.*distutils.*:DeprecationWarning")


def step(n: int, loss: float = 0.5, prior: float | None = None, skipped: bool = False, steps: int = 3) -> Stepped:
    return Stepped(n, steps, loss, prior, 1.5, {"unet": 1e-4, "text_encoder": 5e-5}, 0.25, skipped)


EFFECT = TrainingEffect(0.5, 0.25, CaptionFit(0.9, 0.2), None, {"unet": 0.0123}, 0.345)
VERIFIED = Verified(Path("run/adapter/mug.safetensors"), 14, 14, 0.0, 2e-5, 1e-5, ())
END = Finished(3, "done", Path("a"), Path("b"))
A_RUN: list[Event] = [
    Note("a fact"), Stage("encoding images", 2), Advanced(1), Advanced(2), Stage("training", 3), step(1, 0.9),
    step(2, math.nan, skipped=True), Saved(2, Path("run/checkpoints/step-000002")), Validated(2, 0.4, {"0.1": 0.2}),
    step(3, 0.7, 0.1), Sampled(3, (Path("run/samples/a.png"), Path("run/samples/b.png"))), Warned("a doubt"),
    EFFECT, VERIFIED,
    Finished(3, "done", Path("run/adapter/mug.safetensors"), Path("run/sheet.png"), VERIFIED, EFFECT),
]  # fmt: skip


# --- events.jsonl ----------------------------------------------------------------------------------------------------


def strict(text: str) -> list[dict]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_each_event_is_one_line_of_strict_json_and_training_lines_have_a_step(tmp_path):
    listen = JsonLines(tmp_path / "run" / "events.jsonl")
    for event in A_RUN:
        listen(event)
    rows = strict((tmp_path / "run" / "events.jsonl").read_text())
    assert [row["event"] for row in rows] == [
        "note", "stage", "stage", "stepped", "stepped", "saved", "validated", "stepped", "sampled", "warned",
        "training_effect", "verified", "finished",
    ]  # fmt: skip
    training = [row for row in rows if row["event"] == "stepped"]
    assert [row["step"] for row in training] == [1, 2, 3]
    assert [row["loss"] for row in training] == [0.9, "nan", 0.7] and training[1]["skipped"] is True
    assert training[0]["rates"] == {"unet": 1e-4, "text_encoder": 5e-5} and training[2]["prior_loss"] == 0.1
    assert all(row["step"] for row in rows if row["event"] in ("saved", "validated", "sampled", "finished"))
    assert all(math.isfinite(row["time"]) for row in rows)
    assert rows[-1]["effect"]["base_fit"] == {"share": 0.9, "chance": 0.2} and rows[-1]["report"]["hit"] == 14
    assert {k: v for k, v in rows[-3].items() if k not in ("event", "time")} == rows[-1]["effect"]
    assert next(r for r in rows if r["event"] == "sampled")["paths"] == ["run/samples/a.png", "run/samples/b.png"]


def test_numbers_that_are_not_finite_stay_readable_wherever_they_stand(tmp_path):
    listen = JsonLines(tmp_path / "events.jsonl")
    listen(Validated(1, -math.inf, {"0.1": math.nan, "0.5": 1.0}))
    [row] = strict((tmp_path / "events.jsonl").read_text())
    assert row["loss"] == "-inf" and row["bands"] == {"0.1": "nan", "0.5": 1.0}


def test_a_line_cut_off_by_a_kill_is_ended_before_the_next(tmp_path):
    path = tmp_path / "events.jsonl"
    JsonLines(path)(step(1))
    whole = path.read_text()
    path.write_text(whole + whole[:20])
    JsonLines(path)(step(2))
    lines = path.read_text().splitlines()
    assert len(lines) == 3 and lines[1] == whole[:20]
    assert [strict(lines[i])[0]["step"] for i in (0, 2)] == [1, 2]
    JsonLines(path)(step(3))
    assert len(path.read_text().splitlines()) == 4, "a whole line is not ended twice"


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(folder), purge_orphaned_data=True).Reload()
    return {tag: [(e.step, round(e.value, 6)) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_curves_are_readable_by_tensorboard(tmp_path):
    board = TensorBoard(tmp_path / "tensorboard")
    for event in A_RUN:
        board(event)
    found = curves(tmp_path / "tensorboard")
    assert found["learning_rate/text_encoder"] == [(n, 5e-5) for n in (1, 2, 3)]
    assert found["loss/held_out"] == [(2, 0.4)] and found["loss/held_out_at_0.1"] == [(2, 0.2)]
    assert found["loss/prior"] == [(3, 0.1)] and [v for n, v in found["loss/train"] if n != 2] == [0.9, 0.7]
    assert found["gradient_norm"] == [(n, 1.5) for n in (1, 2, 3)]


def test_a_run_that_tells_no_number_writes_no_curves(tmp_path):
    board = TensorBoard(tmp_path / "tensorboard")
    for event in (Note("hello"), Stage("training", 3), END):
        board(event)
    board.close()
    assert not (tmp_path / "tensorboard").exists()


def test_a_resumed_run_draws_over_what_came_after_the_checkpoint(tmp_path):
    first = TensorBoard(tmp_path)
    for n in (1, 2, 3):
        first(step(n, 0.9))
    first.close()
    second = TensorBoard(tmp_path)
    second(Resumed(1, Path("step-000001")))
    second(step(2, 0.2))
    second.close()
    assert curves(tmp_path)["loss/train"] == [(1, 0.9), (2, 0.2)]


# --- the screen ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "learnt, said",
    [(True, ["learnt: the cup is seen", "perhaps: one [sic]", "perhaps: two"]), (False, ["perhaps: two"])],
)
def test_a_verdict_is_told_once_since_one_that_says_no_ends_in_an_error(learnt: bool, said: list[str]) -> None:
    show, out = screen(terminal=False)
    show(Evaluated(Path("a"), learnt, "9/10", {}, ("one [sic]", "two"), "the cup is seen"))
    assert out.getvalue().splitlines() == said


def screen(terminal: bool, width: int = 160) -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    return Screen(Console(file=out, force_terminal=terminal, width=width, color_system=None)), out


def test_without_a_terminal_there_are_plain_lines_and_no_control_characters():
    shown, out = screen(False)
    for event in A_RUN:
        shown(event)
    text = out.getvalue()
    assert "\x1b" not in text and "\r" not in text
    assert "a fact" in text and "encoding images: 2" in text and "training: 3" in text and "warning: a doubt" in text
    assert "step 1/3  loss 0.9000  4.00 it/s  ETA 0 s" in text and "step 3/3  loss 0.7000" in text
    assert "step 2: the loss was not finite; nothing was changed" in text
    assert "weights moved: unet 1.23%; prediction changed by 34.5%; " in text
    assert "loss on the training images 0.5000 -> 0.2500" in text
    assert "verified: mug.safetensors opened in a fresh base, 14 of 14 modules found, differs from the" in text
    assert "held out at step 2: 0.4000" in text and "saved step 2" in text and "pictures: run/samples" in text


def test_a_long_run_without_a_terminal_is_a_line_now_and_then():
    shown, out = screen(False)
    shown(Stage("training", 500))
    for n in range(1, 501):
        shown(step(n, steps=500))
    assert len([line for line in out.getvalue().splitlines() if line.startswith("step ")]) <= 4


def test_with_a_terminal_a_bar_shows_step_loss_speed_and_time_left():
    shown, out = screen(True)
    shown(Stage("training", 3))
    assert shown.bar is not None
    shown(step(1, 0.9))
    shown(step(2, math.nan, skipped=True))
    shown(step(2, 0.8))
    shown.bar.refresh()
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n").splitlines()[-1]
    assert (
        "training" in last and "2/3" in last and "it/s" in last and "ETA" in last and re.search(r"\d:\d\d:\d\d", last)
    )
    assert "loss 0.8950" in last, "smoothed: 0.95 * 0.9 + 0.05 * 0.8"
    shown(Note("told above the bar"))
    shown(END)
    assert shown.bar is None and "told above the bar" in out.getvalue()


def test_a_finished_or_broken_run_leaves_the_cursor_visible():
    for end in (lambda s: s(END), lambda s: s.close()):
        shown, out = screen(True)
        shown(Stage("training", 3))
        shown(step(1))
        end(shown)
        assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")


def test_what_users_write_is_not_taken_for_markup():
    shown, out = screen(False)
    shown(Note("a [bold]prompt[/bold] of [/] theirs"))
    shown(Warned("[red]"))
    shown(Saved(1, Path("run/[x]/step")))
    assert "a [bold]prompt[/bold] of [/] theirs" in out.getvalue() and "[red]" in out.getvalue()
    assert "run/[x]/step" in out.getvalue()
