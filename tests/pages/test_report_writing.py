"""A run keeps its page: written as it goes, at its end, and when it ends in an error; none of it costs the run."""

import pytest
from support.runs import short

from finetune.errors import NotLearnt, TrainError
from finetune.events import Finished, Note, Stage, Warned
from finetune.pages import writer
from finetune.planning.plan import resolve_plan
from finetune.reporting.status import REPORT
from finetune.resources import EXAMPLES
from finetune.training.folder import RunFolder


@pytest.fixture(scope="module")
def plan():
    return resolve_plan(short(EXAMPLES / "product"))


@pytest.fixture
def folder(plan, tmp_path):
    """A run's folder whose run has begun."""
    found = RunFolder(tmp_path)
    found.open(plan, resume=False)
    found.begin(plan)
    return found


def events(*told, error=None):
    yield from told
    if error:
        raise error


def state(folder):
    page = (folder.path / REPORT).read_text(encoding="utf-8")
    return page.partition('data-state="')[2].partition('"')[0]


def test_a_page_is_there_from_the_first_step_on(folder):
    stream = folder.recorded(events(Stage("training", 4), Note("on")))
    next(stream)
    assert state(folder) == "running" and 'http-equiv="refresh"' in (folder.path / REPORT).read_text()
    stream.close()
    assert state(folder) == "interrupted"


@pytest.mark.parametrize(
    "error, name",
    [(TrainError("the loss is no number", "lower it"), "failed"), (NotLearnt("not learnt"), "not learnt")],
)
def test_a_run_that_ends_in_an_error_has_a_page_that_says_so(folder, error, name):
    with pytest.raises(type(error)):
        list(folder.recorded(events(Stage("training", 4), error=error)))
    page = (folder.path / REPORT).read_text(encoding="utf-8")
    assert state(folder) == name and 'http-equiv="refresh"' not in page
    assert error.hint.capitalize() in page


def test_an_error_that_nobody_foresaw_is_a_failed_run_and_not_one_that_still_runs(folder):
    with pytest.raises(ZeroDivisionError):
        list(folder.recorded(events(Stage("training", 4), error=ZeroDivisionError())))
    assert state(folder) == "failed"


def test_what_is_refused_before_it_begins_leaves_no_page(tmp_path):
    with pytest.raises(TrainError):
        list(RunFolder(tmp_path).recorded(events(Stage("encoding images", 4), error=TrainError("no"))))
    assert not (tmp_path / REPORT).exists()


def test_a_page_that_cannot_be_written_is_a_warning_and_the_result_stays_the_last_event(folder, plan, monkeypatch):
    def fail(run, worded):
        raise OSError(28, "no space left")

    monkeypatch.setattr(writer, "write_report", fail)

    def finished():
        yield Stage("training", 4)
        folder.end(plan)
        yield Finished(4, "done", folder.path, folder.path)

    seen = list(folder.recorded(finished()))
    assert [type(event) for event in seen] == [Warned, Stage, Finished] and "no space left" in seen[0].text


def test_the_last_page_is_there_when_the_result_is_told(folder, plan):
    def finished():
        folder.end(plan)
        yield Finished(4, "done", folder.path, folder.path)

    for event in folder.recorded(finished()):
        assert isinstance(event, Finished) and state(folder) == "not judged"
