"""What the end of a run needs is known before its first step: no run is trained and then thrown away at its export."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from support.hostile import Attempt, attempt

from finetune import families, tensors
from finetune.data import audit
from finetune.evaluation.similarity import FeatureExtractor
from finetune.files import layouts
from finetune.pages import report
from finetune.reporting.public import leak

PHOTO = "/home/anna/photos/mug 1.png"
RECIPE = """
base = "pocket"
[data]
path = "photos"
trigger = "sks"
allow_uncaptioned = true
resolution = 32
[adapter]
rank = 2
targets = ["attn2.to_q"]
[optimizer]
learning_rate = 1e-2
[train]
steps = 2
precision = "fp32"
[sample]
steps = 2
prompts = ["a {trigger} mug"]
[evaluate]
count = 0
[report]
to = []
"""


@pytest.fixture
def short(place: Path) -> Path:
    """The place of hostile inputs with a recipe of two steps in it."""
    (place / "short.toml").write_text(RECIPE)
    return place


def train(place: Path, out: str = "out", as_json: bool = False, **settings: object) -> Attempt:
    """`data__trigger="sks"` sets data.trigger."""
    sets = [
        word for key, one in settings.items() for word in ("--set", f"{key.replace('__', '.')}={json.dumps(one)}")
    ]  # fmt: skip
    return attempt(["train", "short.toml", "--out", out, *sets, *(["--json"] if as_json else [])], place)


def published(adapter: Path) -> dict[str, str]:
    """Every text that goes with an adapter to others: of headers, of the card, of pictures."""
    told: dict[str, str] = {}
    for file in (one for one in adapter.rglob("*") if one.is_file()):
        if file.suffix == ".safetensors":
            told |= {f"{file.name} {key}": text for key, text in tensors.read_header(file).metadata.items()}
        elif file.suffix == ".png":
            with Image.open(file) as image:
                told |= {f"{file.name} {key}": str(text) for key, text in image.info.items()}
        else:
            told[file.name] = file.read_text(encoding="utf-8")
    return told


# --- texts and names --------------------------------------------------------------------------------------------------


def test_texts_that_cannot_be_published_cost_no_run_and_are_told_before_it(short: Path) -> None:
    prompts = [
        f"a {{trigger}} mug as in {PHOTO}",
        "a\nmug\x07 \u202e\u2028on it",
        "a mug " + "very " * 9000,
        "a\\mug \\w",
    ]
    found = train(
        short, data__trigger="s" * 10_000, export__title=f"{PHOTO} {'x' * 300_000}", export__license="see ~/mine.txt",
        sample__prompts=prompts, sample__negative="C:\\Users\\Anna Smith\\bad.png",
    )  # fmt: skip
    assert found.code == 0 and not found.traceback, found.text[-2000:]
    where = ("export.title", "export.license", "item 1", "item 2", "item 3", "sample.negative", "data.trigger")
    for told in (found.out, attempt(["plan", "short.toml", "--set", f"export.title={PHOTO}"], short).text):
        assert "will be left out" in told, told[-2000:]
    assert all(f"{one}:" in found.out for one in where), found.out[-3000:]
    assert found.out.index("export.title:") < found.out.index("pre-flight")
    told = published(short / "out/adapter")
    assert len(told) > 30 and not {key: leak(text) for key, text in told.items() if leak(text)}
    assert not [key for key, text in told.items() if "anna" in text.lower() or "smith" in text.lower()]
    start = tensors.read_header(short / "out/adapter/out.safetensors").payload_start
    assert start < 1 << 20, "ComfyUI shows no metadata of longer headers"
    assert len(told["README.md"]) < 100_000 and "base = " in told["out.safetensors finetune.recipe"]
    with Image.open(short / "out/sheet.png") as sheet:
        assert sheet.width * sheet.height < 4_000_000
    assert PHOTO in (short / "out/recipe.toml").read_text(), "the run's own recipe is as it was written"


@pytest.mark.parametrize("out", ["-:" + "n" * 240, ".con", "caf\u00e9 \u202e*"])
def test_a_folders_name_that_is_no_files_name_costs_no_run(out: str, short: Path) -> None:
    found = train(short, f"./{out}", as_json=True)
    assert found.code == 0 and not found.traceback, found.text[-2000:]
    assert "the adapter's files are called" in found.out
    [file] = (short / out / "adapter").glob("*.safetensors")
    assert len(os.fsencode(file.name)) < 120 and not set(file.name) & set('<>:"|?*\u202e\udce9')
    assert file.name[0] not in "-." and file.stem.lower() != "con"
    assert layouts.read_adapter(file).modules
    told = json.loads(found.out.splitlines()[-1])
    assert told["event"] == "finished" and (short / told["path"]).samefile(file)
    assert (short / told["page"]).samefile(short / out / "report.html")


def test_a_folder_that_no_reader_of_adapters_can_open_is_refused_before_the_work(short: Path) -> None:
    for out in ("caf\udce9", "caf\udce9/run"):
        found = train(short, out)
        assert found.code == 2 and "UTF-8" in found.err and "try: " in found.err, found.text
        assert "encoding" not in found.out and not (short / out).exists()


@pytest.mark.parametrize(
    "setting, said",
    [("sample.steps=2000", "1000 noise levels"), ("sample.guidance=1e30", "at most 100")],
)
def test_what_no_sampler_can_do_is_refused_by_plan_and_by_sample(setting: str, said: str, short: Path) -> None:
    found = attempt(["plan", "short.toml", "--set", setting], short)
    assert found.code == 2 and said in found.err and "try: " in found.err, found.text
    key, value = setting.removeprefix("sample.").split("=")
    drawn = attempt(["sample", "--base", "pocket", "--prompt", "a", "--out", "new", f"--{key}", value], short)
    assert drawn.code == 2 and said in drawn.err and f"--{key}" in drawn.err and not (short / "new").exists()


@pytest.mark.parametrize("word", ["caf\udce9", "a\0b"])
def test_a_prompt_that_is_no_text_is_refused_before_anything_is_opened(
    word: str, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "load", never)
    for more in (["--prompt", word], ["--prompt", "a", "--negative", word]):
        found = attempt(["sample", "--base", "pocket", "--out", "new", *more], short)
        assert found.code == 2 and "UTF-8" in found.err and not found.traceback, found.text
    found = attempt(["sample", "--base", "pocket", "--out", "n", "--prompt", "a {trigger}", "--trigger", word], short)
    assert found.code == 2 and not found.traceback, found.text


# --- where results are written ----------------------------------------------------------------------------------------

TARGETS: dict[str, list[str]] = {
    # command -> its words, TARGET where the result goes
    "sample": ["sample", "--base", "pocket", "--prompt", "a cup", "--out", "TARGET"],
    "export": ["export", "--from", "mug.safetensors", "--out", "TARGET"],
    "export peft": ["export", "--from", "mug.safetensors", "--layout", "peft", "--out", "TARGET"],
    "export merged": [
        "export", "--from", "mug.safetensors", "--layout", "merged", "--base", "pocket", "--out", "TARGET",
    ],
    "compare": ["compare", "mug.safetensors", "--base", "pocket", "--prompt", "a cup", "--out", "TARGET"],
    "prepare": ["prepare", "photos", "--trigger", "sks", "--out", "TARGET"],
    "check --html": ["check", "photos", "--html", "TARGET"],
    "report": ["report", "run", "--out", "TARGET"],
    "train": ["train", "short.toml", "--out", "TARGET"],
}  # fmt: skip
OBSTACLES = {"a file in the way": "empty.txt/new", "a name of 300 letters": "n" * 300, "a full disk": "new"}


def never(*_: object, **__: object) -> None:
    raise AssertionError("long work began")


@pytest.fixture
def idle(short: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place, where nothing that works long can be called."""
    (short / "empty.txt").touch()
    (short / "run").mkdir()
    (short / "run/run.json").write_text('{"outcome": "done"}')
    for owner, name in ((families, "load"), (FeatureExtractor, "load"), (report, "report"), (layouts, "read_adapter")):
        monkeypatch.setattr(owner, name, never)
    for module in ("finetune.data.sources.gather", "finetune.data.audit", "finetune.captioning.dataset"):
        monkeypatch.setattr(f"{module}.auditing", never)
    return short


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("what", TARGETS)
def test_a_target_that_cannot_be_written_is_found_before_the_work(
    what: str, obstacle: str, idle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle == "a full disk":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, -1))  # type: ignore[attr-defined]
    before = sorted(idle.rglob("*"))
    found = attempt([word.replace("TARGET", OBSTACLES[obstacle]) for word in TARGETS[what]], idle)
    assert found.code == 2 and not found.traceback, found.text
    assert "cannot write" in found.err and "try: " in found.err, found.text
    assert sorted(idle.rglob("*")) == before, "nothing of the trial is left"


def test_evaluate_and_caption_try_where_they_write_first(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "load", never)
    monkeypatch.setattr(FeatureExtractor, "load", never)
    (short / "mug-evaluation").touch()
    found = attempt(["evaluate", "mug.safetensors", "--base", "pocket", "--data", "photos"], short)
    assert found.code == 2 and "cannot write into mug-evaluation" in found.err, found.text
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, -1))  # type: ignore[attr-defined]
    found = attempt(["caption", "bare", "--vocabulary", "pocket", "--trigger", "sks", "--class-word", "mug"], short)
    assert found.code == 2 and "cannot write into" in found.err and "bare" in found.err, found.text


def test_the_obstacles_are_the_only_reason(idle: Path) -> None:
    """Else the cases above would pass for any error at all."""
    assert audit.auditing is never
    for what, words in TARGETS.items():
        found = attempt([word.replace("TARGET", f"new {what}") for word in words], idle)
        assert found.traceback and "long work began" in found.err, (what, found.text)
