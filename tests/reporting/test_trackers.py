"""What trackers get of a run: TensorBoard's real files, and the calls that Accelerate makes of the others."""

import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from accelerate import PartialState
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune import recipe
from finetune.errors import RecipeError
from finetune.events import Evaluated, Event, Resumed, Sampled, Score, Scored, Stepped
from finetune.planning import plan as planning
from finetune.planning import resolve
from finetune.reporting import trackers
from finetune.reporting.trackers import Described, Trackers

pytestmark = pytest.mark.filterwarnings("ignore:.*distutils.*:DeprecationWarning")
SCORES = {"likeness": Score(0.7, 0.6, 0.8)}


def stepped(n: int) -> Stepped:
    return Stepped(n, 4, 1 / n, None, 1.5, {"unet": 1e-4}, 0.5, False, 3 << 30)


@pytest.fixture(autouse=True)
def _state() -> None:
    """As a run has it: Accelerate's trackers ask which rank they are on."""
    PartialState(cpu=True)


@pytest.fixture
def run(tmp_path: Path) -> Described:
    Image.new("RGB", (8, 4), "red").save(tmp_path / "step-000002.png")
    Image.new("RGB", (4, 8), "blue").save(tmp_path / "sheet-mug.png")
    return Described(tmp_path, "brand", "mug", {"train.steps": 4, "base": "pocket"}, 'base = "pocket"\n', 2)


def told(run: Described) -> list[Event]:
    sheet, judged = run.folder / "step-000002.png", run.folder / "sheet-mug.png"
    verdict = Evaluated(run.folder / "a", False, "3/4", SCORES, ("too few steps",), "the mug is not seen", judged)
    return [stepped(1), stepped(2), Sampled(2, (), sheet), Scored(2, "3/4", SCORES), stepped(3), verdict]


def listen(run: Described, *to: Any, events: list[Event]) -> list[str]:
    """Each event to these trackers. Returns what went wrong."""
    listener, said = Trackers(), list[str]()
    for event in events:
        if not isinstance(event, Resumed) and event is next(e for e in events if not isinstance(e, Resumed)):
            listener.begin(to, run)
        listener(event)
        said += listener.faults()
    listener.close()
    while more := listener.faults():
        said += more
    return said


EXPECTED = {
    "loss/train": [1.0, 0.5, 1 / 3], "gradient_norm": [1.5] * 3, "learning_rate/unet": [1e-4] * 3,
    "speed/steps_per_second": [2.0] * 3, "speed/images_per_second": [4.0] * 3, "memory/peak_gib": [3.0] * 3,
    "scores/likeness": [0.7], "scores/seen": [0.75], "verdict/likeness": [0.7], "verdict/learnt": [0.0],
}  # fmt: skip


def test_tensorboard_has_curves_pictures_the_recipe_and_the_verdict(run: Described) -> None:
    assert listen(run, "tensorboard", events=told(run)) == []
    found = EventAccumulator(str(run.folder / trackers.FOLDER)).Reload()
    curves = {name: [e.value for e in found.Scalars(name)] for name in found.Tags()["scalars"]}
    assert curves == {name: pytest.approx(values) for name, values in EXPECTED.items()}
    assert [e.step for e in found.Scalars("verdict/learnt")] == [3]
    [sheet], [judged] = found.Images("samples"), found.Images("evaluation")
    assert (sheet.step, sheet.width, sheet.height) == (2, 8, 4) and (judged.step, judged.width) == (3, 4)
    said = {n: found.Tensors(n)[0].tensor_proto.string_val[0].decode() for n in found.Tags()["tensors"]}
    assert said["verdict/text_summary"] == "the mug is not seen too few steps"
    assert 'base = "pocket"' in said["recipe/text_summary"]


def test_a_recipe_that_names_no_tracker_writes_none(run: Described) -> None:
    before = sorted(run.folder.iterdir())
    assert listen(run, events=told(run)) == [] and sorted(run.folder.iterdir()) == before


def test_a_full_disk_costs_the_curves_and_is_said_once(run: Described, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trackers.TensorBoard, "log", full)
    [said] = listen(run, "tensorboard", events=told(run))
    assert said == "tensorboard: [Errno 28] No space left on device; the run goes on without its curves"


# --- the others, as Accelerate calls them ----------------------------------------------------------------------------


class Fake(ModuleType):
    """Writes down each call; of a run as well. broken: the names of calls that fail."""

    def __init__(self, name: str, broken: tuple[str, ...] = ()) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.broken = broken
        self.config = SimpleNamespace(update=self._call("config"))
        self.Image = lambda path: f"picture {Path(path).name}"
        self.run = SimpleNamespace(
            log=self._call("log"), finish=self._call("finish"), info=SimpleNamespace(run_id="run-7")
        )
        self.init = self._call("init")
        self.create_experiment, self.search_experiments = self._call("create_experiment", "1"), lambda **_: []
        self.start_run, self.log_params = self._call("start_run"), self._call("log_params")
        self.log_metrics, self.log_artifact = self._call("log_metrics"), self._call("log_artifact")
        self.set_tag, self.end_run = self._call("set_tag"), self._call("end_run")
        self.utils = SimpleNamespace(
            validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
        )

    def _call(self, name: str, gives: object = None) -> Any:
        def call(*arguments: Any, **named: Any) -> object:
            self.calls.append((name, arguments, named))
            if name in self.broken:
                raise ConnectionError(f"no network for {name}\nand more")
            return gives or self.run

        return call

    def of(self, name: str) -> list[Any]:
        return [(arguments, named) for called, arguments, named in self.calls if called == name]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(name: str, *broken: str) -> Fake:
        made = Fake(name, broken)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return put


def curves(calls: list[Any]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for arguments, _ in calls:
        for name, value in arguments[0].items():
            found.setdefault(name, []).extend([value] if isinstance(value, float) else [])
    return {name: values for name, values in found.items() if values}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_get_the_same_and_go_on_with_the_same_run(name: Any, run: Described, fake: Any) -> None:
    one = fake(name)
    assert listen(run, name, events=told(run)) == []
    [(_, opened)] = one.of("init")
    assert opened["project"] == "brand" and opened["resume"] == "allow" and opened["name"].startswith("mug")
    assert one.of("config") == [(({"train.steps": 4, "base": "pocket"},), {"allow_val_change": True})]
    assert curves(one.of("log")) == EXPECTED
    texts = [(a[0], n["step"]) for a, n in one.of("log") if {"samples", "evaluation", "verdict"} & a[0].keys()]
    shown = [v for _, v in ((s, next(iter(a.values()))) for a, s in texts)]
    assert [step for _, step in texts] == [2, 3, 3] and shown[-1] == "the mug is not seen too few steps"
    assert shown[:2] == [f"picture {n}" for n in ("step-000002.png", "sheet-mug.png")] or shown[:2] == [
        [f"picture {n}"] for n in ("step-000002.png", "sheet-mug.png")
    ]
    assert len(one.of("finish")) == 1
    again = fake(name)
    listen(run, name, events=[Resumed(2, run.folder), stepped(3)])
    key = "id" if name == "wandb" else "name"
    assert again.of("init")[0][1][key] == opened[key], "the same curves"


def test_mlflow_gets_metrics_artifacts_and_a_tag_and_its_parameters_once(run: Described, fake: Any) -> None:
    one = fake("mlflow")
    assert listen(run, "mlflow", events=told(run)) == []
    [(_, started)] = one.of("start_run")
    assert (started["run_id"], started["run_name"]) == (None, "mug")
    assert one.of("create_experiment")[0][1]["name"] == "brand"
    assert one.of("log_params") == [(({"train.steps": 4, "base": "pocket"},), {})]
    assert curves(one.of("log_metrics")) == EXPECTED
    assert [n["artifact_path"] for _, n in one.of("log_artifact")] == ["samples", "evaluation"]
    assert one.of("set_tag") == [(("verdict", "the mug is not seen too few steps"), {})] and one.of("end_run")
    again = fake("mlflow")
    listen(run, "mlflow", events=[Resumed(2, run.folder), stepped(3)])
    assert again.of("start_run")[0][1]["run_id"] == "run-7" and not again.of("log_params")


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_no_network_is_said_once_and_the_others_get_everything(name: Any, run: Described, fake: Any) -> None:
    broken, other = fake(name, "init", "start_run"), fake("trackio" if name != "trackio" else "wandb")
    said = listen(run, name, other.__name__, "tensorboard", events=told(run))
    call = "start_run" if name == "mlflow" else "init"
    assert said == [f"{name}: no network for {call}, and the run goes on without it"]
    assert not broken.of("log") and not broken.of("log_metrics") and curves(other.of("log")) == EXPECTED
    lossy = fake(name, "log", "log_metrics")
    assert listen(run, name, events=told(run)) == [
        f"{name}: no network for {'log_metrics' if name == 'mlflow' else 'log'}; some of its curves are missing, the "
        "run is unharmed"
    ]
    assert len(lossy.of("log") + lossy.of("log_metrics")) >= 5, "it is tried again: the network may come back"


def test_what_a_tracker_prints_does_not_reach_the_screen(
    run: Described, fake: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    one = fake("trackio")
    opened, done = one.init, one.run.finish
    one.init = lambda **named: (sys.stdout.write("* Trackio project initialized"), opened(**named))[1]
    one.run.finish = lambda: (sys.stdout.write("* Run finished"), done())
    assert listen(run, "trackio", events=told(run)) == [] and one.of("finish")
    sys.stdout.write("mine\n")
    assert capsys.readouterr().out == "mine\n"


def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolve, "find_spec", lambda name: None if name in ("wandb", "mlflow") else object())
    loaded = recipe.load(Path("pocket-product"), ['report.to=["wandb", "tensorboard", "mlflow"]'])
    with pytest.raises(RecipeError, match=r"report\.to: wandb is not installed") as refused:
        planning.resolve_plan(loaded)
    assert refused.value.advice == "pip install wandb mlflow"
    with pytest.raises(RecipeError, match=r"report\.to"):
        recipe.load(Path("pocket-product"), ['report.to=["comet"]'])


def test_the_line_that_says_where_the_curves_are(tmp_path: Path) -> None:
    line = trackers.how_to_open(("tensorboard", "trackio", "wandb", "mlflow"), tmp_path / "my run", "brand")
    assert f"tensorboard --logdir '{tmp_path}/my run/tensorboard'" in line
    assert "trackio show --project brand" in line and "W&B, project brand" in line and "mlflow ui" in line
    assert trackers.how_to_open((), tmp_path, "brand") == ""


def test_one_that_does_not_answer_is_given_up(run: Described, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    held, one = threading.Event(), fake("wandb")
    one.run.finish = held.wait
    monkeypatch.setattr(trackers, "_LAST_S", 0.0)
    said = listen(run, "wandb", events=told(run))
    assert len(said) == 1 and "it does not answer" in said[0]
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "wandb"), "no end waits for it"
    held.set()
