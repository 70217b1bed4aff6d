"""A run's page says what its folder holds, of a run in any state, and costs no run."""

import base64
import contextlib
import io
import json
import re
import shlex
import shutil

import pytest
import typer
from PIL import Image
from support import report_runs as runs
from support.command import said

import finetune
from finetune import recipe as recipes
from finetune.cli import app, training_view
from finetune.cli.options import Output
from finetune.cli.wording import command_of
from finetune.errors import Interrupted, NotLearnt, RunError
from finetune.events import Finished, Sampled, Stage, Stepped, Warned
from finetune.pages import numbers, outcome, pictures, training_data, writer
from finetune.pages.figures import smoothed, thinned
from finetune.pages.report import report, write_report
from finetune.pages.settings import settings_of
from finetune.pages.writer import ReportWriter
from finetune.reporting.history import read_history
from finetune.reporting.owner import Ownership
from finetune.reporting.status import REPORT

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")


@pytest.fixture
def bad(trained_run, tmp_path):
    return runs.copied(trained_run, tmp_path / "mug run")


@pytest.fixture
def running(bad):
    """The same run as it was after three of six steps, its folder owned by a living process."""
    ownership = Ownership(runs.before(bad, 3))
    ownership.take()
    yield bad
    ownership.release()


def found(run):
    return outcome.outcome_of(read_history(run))


# --- what a run left, in its own words -------------------------------------------------------------------------------


def test_a_run_writes_its_page_and_the_page_has_its_verdict(trained_run):
    page = (trained_run / REPORT).read_text(encoding="utf-8")
    assert 'data-state="not learnt"' in page and 'http-equiv="refresh"' not in page
    told = found(trained_run)
    assert [reply.short for reply in told.answers] == ["No", "No", "None"] and told.todo
    assert "mug.safetensors is kept" in told.answers[2].text


def test_the_command_and_the_call_write_the_same_page(bad, tmp_path, capsys):
    (bad / REPORT).unlink()
    assert said(capsys, "report", bad) == (0, f"{bad / REPORT}\n", "")
    other = tmp_path / "other.html"
    code, out, _ = said(capsys, "report", bad, "--out", other, "--json")
    assert code == 0 and json.loads(out) == {"path": str(other)}
    assert finetune.report(bad) == bad / REPORT

    (page,) = re.findall(r"<code>(train\([^<]*)</code>", (bad / REPORT).read_text(encoding="utf-8"))
    assert page.startswith("train(recipe="), "as Python has it"

    def timeless(path):
        return re.sub(r"Page written [-\d: ]+ UTC", "", path.read_text(encoding="utf-8"))

    said(capsys, "report", bad)
    assert timeless(other) == timeless(bad / REPORT) and "<code>finetune train" in timeless(other)


@pytest.mark.parametrize("made", ["nothing", "empty", "foreign", "file"])
def test_where_there_is_no_run_it_says_so_and_writes_nothing(tmp_path, capsys, made):
    place = tmp_path / "place"
    if made in ("empty", "foreign"):
        place.mkdir()
    if made == "foreign":
        (place / "holiday.jpg").write_bytes(b"x")
    if made == "file":
        place.write_text("x")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = said(capsys, "report", place)
    assert (code, out) == (2, "") and "holds no run" in err and sorted(tmp_path.rglob("*")) == before


def test_a_page_that_cannot_be_written_is_an_error_of_the_command(bad, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        write_report(bad, tmp_path / "taken")


def test_every_command_on_the_page_is_one_that_the_program_has(bad):
    runs.recorded(bad, outcome="interrupted")
    page = report(bad, training_view.worded_here)
    shown = re.findall(r"<code>((?:finetune|python) [^<]*)</code>", page)
    assert len(shown) == 4, "resume, export, repeat, serve"
    program = typer.main.get_command(app)
    for text in shown:
        words = shlex.split(text.replace("&#39;", "'"))
        if words[0] == "finetune":
            command_of(program, words[1:]).make_context(words[1], words[2:])
    assert "--resume" in shown[0] and "http.server" in shown[-1]


# --- states ----------------------------------------------------------------------------------------------------------


def test_a_good_run_names_its_file_and_how_it_is_used(bad):
    told = found(runs.as_learnt(bad))
    assert (told.state, told.tone) == ("learnt", "good")
    assert [reply.short for reply in told.answers] == ["Yes", "Yes", "mug.safetensors"]
    assert told.delivery.trigger == "sks" and told.delivery.prompt == "a sks cup on a red background"
    assert str(bad / "adapter") in told.answers[2].text and '"sks"' in told.answers[2].text


def test_a_run_that_learnt_with_a_reservation_says_what_to_do(bad):
    told = found(runs.as_learnt(bad, ("pictures without the trigger have changed (0.30): fewer train.steps",)))
    assert told.answers[1].short == "Mostly" and [one.text for one in told.todo] == [
        "Pictures without the trigger have changed (0.30): fewer train.steps."
    ]


def test_a_run_that_goes_on_says_how_far_it_is_and_reloads(running):
    page = report(running)
    assert '<meta http-equiv="refresh" content="30">' in page and "Step 3 of 6 (50%)" in page
    told = found(running)
    assert told.goes_on and told.answers[2].short == "None yet" and told.delivery is None


def test_the_time_that_is_left_is_counted_from_when_steps_were_told(bad):
    runs.before(bad, 3)
    steps = iter(range(10))
    runs.edited(bad, lambda told: {**told, "time": 100.0 * next(steps)} if told["event"] == "stepped" else told)
    assert "About 5 minutes left" in outcome.progress_of(read_history(bad))


def test_a_run_whose_process_is_gone_was_cut_off(bad):
    told = found(runs.before(bad, 3))
    assert "after step 3 of 6" in told.text and "last heard of" in told.text and not told.progress
    assert told.state == "silent" and not told.goes_on and told.todo[0].action.arguments["resume"]


def test_an_interrupted_run_says_how_it_goes_on(bad):
    runs.recorded(runs.before(bad, 3), outcome="interrupted")
    told = found(bad)
    assert told.state == "interrupted" and "after step 3 of 6" in told.text and told.todo[0].action.arguments["resume"]


def test_a_failed_run_says_why_and_what_to_do(bad):
    runs.recorded(runs.before(bad, 3), outcome="failed", reason="the loss is no number", hint="lower the rate")
    told = found(bad)
    assert (told.state, told.tone, told.text) == ("failed", "bad", "The loss is no number.")
    assert told.todo[0].text == "Lower the rate." and told.todo[1].action.name == "train"


def test_a_run_that_nobody_judged_says_why(bad):
    why = "evaluate.count = 0: whether it was learnt is not judged"
    runs.edited(bad, lambda told: {**told, "event": "note", "text": why} if told["event"] == "evaluated" else told)
    told = found(runs.recorded(bad, outcome="done"))
    assert (told.state, told.answers[0].short) == ("not judged", "Not judged") and "evaluate.count = 0" in told.text
    assert told.answers[2].short == "mug.safetensors", "there is a file, and it was verified"


def test_a_verdict_from_before_a_resume_is_none_of_what_came_after(bad):
    runs.as_learnt(bad)
    with (bad / "events.jsonl").open("a") as log:
        log.write(json.dumps({"event": "resumed", "time": 2e9, "step": 6, "path": "x"}) + "\n")
    runs.recorded(bad, outcome="running")
    told = found(bad)
    assert told.state == "silent" and told.answers[2].short == "None yet"
    assert numbers.final_scores(read_history(bad)) is None


def test_a_run_of_all_weights_sends_a_folder_with_a_whole_model(bad):
    shutil.rmtree(bad / "adapter")
    model = bad / "adapter" / "mug"
    model.mkdir(parents=True)
    (model / "model_index.json").write_text("{}")
    (model / "weights.safetensors").write_bytes(b"x" * 1500)
    told = found(runs.as_learnt(bad))
    assert told.delivery.whole and told.answers[2].short == "mug" and told.delivery.size == "1.5 kB"
    assert "How the model is used" in report(bad) and 'id="use-weight"' not in report(bad)


def test_the_file_for_every_program_is_the_one_to_send(bad):
    (bad / "adapter" / "a-diffusers.safetensors").write_bytes(b"x")
    told = found(runs.as_learnt(bad))
    assert told.delivery.name == "mug.safetensors" and told.delivery.others == ("a-diffusers.safetensors",)


@pytest.mark.parametrize("ending", ["done", "not learnt", "refused"])
def test_the_end_of_train_names_the_page_first_where_the_run_wrote_one(bad, capsys, monkeypatch, ending):
    path = bad / "adapter" / "mug.safetensors"

    def follow(events, listen):
        if ending != "refused":
            (bad / REPORT).write_text("new")
        if ending != "done":
            raise NotLearnt("not learnt")
        return Finished(6, "done", path, bad / "sheet.png")

    monkeypatch.setattr(training_view, "run", lambda *_: iter(()))
    monkeypatch.setattr(training_view, "follow", follow)
    loaded = recipes.load(bad / "recipe.toml")
    with contextlib.nullcontext() if ending == "done" else pytest.raises(NotLearnt):
        training_view.train(loaded, bad, False, Output())
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert [line[0] for line in lines][:1] == ([] if ending == "refused" else ["page"])
    assert ending != "done" or [line[0] for line in lines][:2] == ["page", "done"]


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["events.jsonl", "run.json", "recipe.toml"])
@pytest.mark.parametrize("content", [None, b"\xff\x00[[[", b'{"event": "scored", "time": 1}\n'])
def test_a_file_that_is_missing_or_broken_costs_no_page(bad, name, content):
    (bad / name).unlink()
    if content is not None:
        (bad / name).write_bytes(content)
    page = report(bad)
    assert "<h1>" in page and 'id="watch"' in page


@pytest.mark.parametrize("wrong", [None, "x", -1, [], {"a": 1}])
def test_values_of_another_kind_than_written_cost_no_page(bad, wrong):
    def broken(told):
        return {key: one if key in ("event", "time") else wrong for key, one in told.items()}

    runs.edited(bad, broken)
    page = report(bad)
    assert "cannot be read" in page and page.count("<section") >= 3


def test_pictures_that_cannot_be_read_are_left_out(bad):
    for path in bad.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:40])
    history = read_history(bad)
    assert pictures.before_and_after(history) is None and pictures.judged_pictures(history, "sks") is None
    assert ">none<" in report(bad)


def test_a_dataset_that_has_moved_is_said(bad):
    recipe = bad / "recipe.toml"
    recipe.write_text(re.sub(r'path = ".*"', 'path = "/nowhere/photos"', recipe.read_text()))
    page = report(bad)
    assert "The pictures are not shown" in page and "/nowhere/photos" in page


# --- sections --------------------------------------------------------------------------------------------------------


def test_before_and_after_are_the_base_and_the_file_at_the_same_prompt_and_seed(trained_run):
    pairs = pictures.before_and_after(read_history(trained_run))
    assert [pair.after.prompt for pair in pairs.pairs] == ["a sks cup on a red background", "a star"]
    assert all(pair.before.prompt == pair.after.prompt and pair.before.seed == pair.after.seed for pair in pairs.pairs)
    assert all(pair.before.source != pair.after.source for pair in pairs.pairs[:1])
    assert "adapter" in pairs.pairs[0].after.facts and "adapter" not in pairs.pairs[0].before.facts


def test_while_it_runs_the_first_step_is_before_and_the_newest_after(bad):
    pairs = pictures.before_and_after(read_history(runs.before(bad, 3)))
    assert (pairs.before, pairs.after) == ("before training", "after 3 steps")
    assert pairs.pairs[0].before.facts["step"] == "0" and pairs.pairs[0].after.facts["step"] == "3"


def test_the_judged_pictures_are_those_of_the_exported_file(trained_run):
    found = pictures.judged_pictures(read_history(trained_run), "sks")
    assert len(found.with_trigger) == 4 and found.without
    for pair in (*found.with_trigger, *found.without):
        assert (pair.before.facts["adapter"], pair.after.facts["adapter"]) == ("", "mug.safetensors:1")
        assert (pair.before.prompt, pair.before.seed) == (pair.after.prompt, pair.after.seed)


def test_while_it_runs_the_judged_pictures_are_those_of_the_newest_candidate(bad):
    found = pictures.judged_pictures(read_history(runs.before(bad, 3)), "sks")
    assert {pair.after.facts["adapter"] for pair in found.with_trigger} == {"mug-step000003.safetensors:1"}
    runs.edited(bad, lambda told: None if told["event"] == "scored" else told)
    assert pictures.judged_pictures(read_history(bad), "sks") is None


def test_candidates_are_told_with_their_scores_and_the_picked_one_is_marked(trained_run):
    rows = numbers.candidates(read_history(trained_run))
    assert [row.step for row in rows] == [3, 6] and all("likeness" in row.scores for row in rows)
    picked = json.loads((trained_run / "run.json").read_text())["picked_step"]
    assert [row.step for row in rows if row.picked] == [picked]
    assert rows[0].named == f"{trained_run.resolve()}@3" and finetune.inspect(rows[0].named)


def test_where_nothing_was_picked_the_file_is_of_the_last_step(bad):
    runs.edited(runs.recorded(bad, picked_step=None), lambda told: None if told["event"] == "picked" else told)
    with (bad / "events.jsonl").open("a") as log:
        log.write(json.dumps({"event": "finished", "time": 2e9, "step": 6}) + "\n")
    assert [row.step for row in numbers.candidates(read_history(bad)) if row.picked] == [6]


def test_change_by_layer_is_what_the_run_measured(trained_run):
    history = read_history(trained_run)
    modules = history.last("weights_changed").values["modules"]
    rows = numbers.changed_layers(history).rows
    assert sum(row.modules for row in rows) == len(modules) and max(row.width for row in rows) == 100
    weights = history.last("training_effect").values["weights"]["unet"]
    shares = [share for name, share in modules.items() if name.startswith("unet.")]
    assert min(shares) < weights < max(shares)
    assert numbers.block_of("unet.down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_q") == ("unet.down_blocks.0")


def test_curves_have_all_that_was_told_and_take_their_colours_from_the_page(trained_run):
    page = report(trained_run)
    for name in ("loss", "held-out", "scores", "rate", "gradient"):
        assert f'id="{name}-title"' in page and f'id="{name}-desc"' in page
    drawings = re.findall(r'<svg class="figure".*?</svg>', page, re.DOTALL)
    assert len(drawings) == 5 and not [d for d in drawings if re.search(r"#[0-9a-fA-F]{6}\b", d.replace("#ffffff", ""))]
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_smoothing_and_thinning_keep_the_ends():
    assert smoothed([1.0, 0.0])[1] == pytest.approx(0.95)
    steps, values = thinned(list(range(1, 1001)), [float(n) for n in range(1, 1001)], most=100)
    assert len(steps) == 100 and steps[-1] == 1000 and values[0] == pytest.approx(5.5)
    assert thinned([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])


def test_settings_that_differ_come_first_and_none_is_lost(trained_run):
    history = read_history(trained_run)
    found = settings_of(history)
    own, usual = ({one.key: one for one in many} for many in (found.own, found.usual))
    assert own["adapter.rank"].shown == "2" and own["adapter.rank"].usual == "16" and "optimizer.beta1" in usual
    said = {key for table, values in history.recipe.items() if isinstance(values, dict) for key in
            (f"{table}.{one}" for one in values)}  # fmt: skip
    assert said <= own.keys() | usual.keys()


def test_the_training_pictures_are_shown_as_they_are_cropped(trained_run):
    found = training_data.training_data(read_history(trained_run))
    assert found.number == len(found.thumbnails) > 0 and found.origins == [f"{found.number} by a person"]
    assert all('width="32" height="32"' in one.figure and "empty caption" not in one.figure for one in found.thumbnails)
    source = re.search(r'src="data:image/\w+;base64,([^"]+)"', found.thumbnails[0].figure)
    with Image.open(io.BytesIO(base64.b64decode(source[1]))) as seen:
        assert seen.size == (32, 32), "as training sees it, and not the file"


# --- the run's own writing -------------------------------------------------------------------------------------------


@pytest.fixture
def written(monkeypatch, bad):
    """A writer of a run whose clock is set by hand, and when it wrote: each takes a second."""
    now, calls = [0.0], []

    def write(run, worded):
        calls.append(now[0])
        now[0] += 1.0

    monkeypatch.setattr(writer, "write_report", write)
    return ReportWriter(bad, clock=lambda: now[0]), now, calls


STEP = Stepped(1, 9, 0.5, None, 1.0, {}, 0.1, False)


def test_the_page_is_written_at_news_no_more_than_a_share_of_the_time_and_at_the_end(written, tmp_path):
    write, now, calls = written
    write(Stage("training", 9))
    assert calls == [0.0], "at the beginning"
    for event in (STEP, Sampled(1, ()), STEP):
        write(event)
    assert len(calls) == 1, "a second was spent, and not twenty have passed"
    now[0] = 21.5
    write(STEP)
    assert len(calls) == 2, "the news has waited"
    now[0] = 60.0
    write(STEP)
    assert len(calls) == 2, "nothing is new"
    write(Finished(9, "done", tmp_path, tmp_path))
    assert len(calls) == 3 and write.finished


def test_a_page_that_cannot_be_written_is_told_once_and_costs_no_run(bad, monkeypatch):
    def fail(run, worded):
        raise OSError(28, "no space left")

    monkeypatch.setattr(writer, "write_report", fail)
    write = ReportWriter(bad, clock=lambda: 0.0)
    first = write(Stage("training", 9))
    assert isinstance(first, Warned) and "cannot be written" in first.text
    assert write(Sampled(1, ())) is None and write(STEP) is None and (bad / REPORT).exists()
    assert write.end() is None and not (bad / REPORT).exists(), "an old one would say that the run goes on"


def test_ctrl_c_while_the_page_is_written_stops_the_run(bad, monkeypatch):
    def interrupted(run, worded):
        raise Interrupted("stopped")

    monkeypatch.setattr(writer, "write_report", interrupted)
    with pytest.raises(Interrupted):
        ReportWriter(bad)(Stage("training", 9))


def test_a_page_of_a_run_without_anything_but_its_log(tmp_path):
    (tmp_path / "events.jsonl").write_text("")
    page = report(tmp_path)
    assert 'data-state="not begun"' in page
    shutil.rmtree(tmp_path)
