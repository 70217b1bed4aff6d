"""A run's folder is read back, whole, half-written or damaged."""

import json

from finetune.events import Resumed, Stepped, Warned
from finetune.reporting.history import read_history
from finetune.reporting.jsonl import JsonLines


def stepped(step, loss=0.5):
    return Stepped(step, 10, loss, None, 1.0, {"unet": 1e-4}, 0.1, False)


def test_what_a_run_said_is_read_back(tmp_path):
    log = JsonLines(tmp_path / "events.jsonl")
    for event in (Warned("look out"), stepped(1), stepped(2, float("nan"))):
        log(event)
    (tmp_path / "run.json").write_text('{"outcome": "failed", "steps": 10}')
    (tmp_path / "recipe.toml").write_text('base = "pocket"')
    found = read_history(tmp_path)
    assert (found.step, found.steps, found.outcome, found.recipe["base"]) == (2, 10, "failed", "pocket")
    assert [event.name for event in found.events] == ["warned", "stepped", "stepped"]
    assert found.last("warned").values["text"] == "look out" and len(found.every("stepped")) == 2
    assert found.last("stepped").values["loss"] == "nan" and found.last("verified") is None
    assert not found.damage and found.last("stepped").time > 1.7e9


def test_steps_that_were_taken_again_stand_there_once(tmp_path):
    log = JsonLines(tmp_path / "events.jsonl")
    for event in (*map(stepped, range(1, 8)), Resumed(4, tmp_path), stepped(5, 0.25)):
        log(event)
    found = read_history(tmp_path)
    assert [event.values["step"] for event in found.every("stepped")] == [1, 2, 3, 4, 5]
    assert found.last("stepped").values["loss"] == 0.25


def test_a_run_that_was_begun_again_in_its_folder_is_told_once(tmp_path):
    log = JsonLines(tmp_path / "events.jsonl")
    for event in (*map(stepped, range(1, 4)), Warned("again"), stepped(1, 0.25), stepped(2, 0.25)):
        log(event)
    found = read_history(tmp_path)
    assert [event.values["loss"] for event in found.every("stepped")] == [0.25, 0.25]


def test_a_half_written_last_line_is_nothing_to_speak_of_and_other_damage_is_named(tmp_path):
    good = json.dumps({"event": "note", "time": 1.0, "text": "x"})
    (tmp_path / "events.jsonl").write_text(f"{good}\n{good[:9]}")
    assert len(read_history(tmp_path).events) == 1 and not read_history(tmp_path).damage
    (tmp_path / "events.jsonl").write_text(f"{good}\n[1]\n{'[' * 100_000}\n{{}}\n{good}\n")
    (tmp_path / "run.json").write_text('{"outcome"')
    (tmp_path / "recipe.toml").write_bytes(b"\xff")
    found = read_history(tmp_path)
    assert len(found.events) == 2 and len(found.damage) == 5 and found.outcome == "" and found.steps == 0


def test_an_empty_folder_has_no_history(tmp_path):
    found = read_history(tmp_path)
    assert not found.events and not found.damage and found.step == 0
