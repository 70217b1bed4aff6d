"""Adapters beside each other: pictures as `sample` makes them, nothing of the adapter before remains, one base."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.adapters import pocket_adapter
from typer.testing import CliRunner

import finetune
from finetune import families, references
from finetune import tensors as weights
from finetune.cli import app
from finetune.errors import InputError, RunError
from finetune.evaluation import compare as compare_module
from finetune.evaluation.compare import Comparison, ComparisonRequest, compare, shortened
from finetune.evaluation.subject import of_path
from finetune.events import Note, Score, Stage, unheard
from finetune.pages import comparison as pages
from finetune.sampling.request import AdapterWeight, SampleRequest
from finetune.sampling.session import Session

PROMPTS = ("a photo of {trigger} {class_word}", "a star")
DATA = "example:product"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three strong changes of the pocket base; the last with words of its own."""
    folder = tmp_path_factory.mktemp("adapters")
    words = (("sks", "cup"), ("sks", "cup"), ("zwx", "jug"))
    for n, (trigger, class_word) in enumerate(words):
        pocket_adapter(folder / f"{n}.safetensors", n, trigger, class_word, 0.6)
    return [str(folder / f"{n}.safetensors") for n in range(3)]


@pytest.fixture(scope="module")
def small(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[ComparisonRequest, Comparison, Path]:
    """All three, at two weights, two prompts and two seeds."""
    wanted = ComparisonRequest(tuple(files), (0.0, 0.8), (), PROMPTS, 3, 2)
    folder = tmp_path_factory.mktemp("compared") / "out"
    return wanted, unheard(pages.begun(compare(wanted, folder / "pictures"), wanted, folder)), folder


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


def off(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(pixels(one) - pixels(other)).max())


def test_every_adapter_weight_prompt_and_seed_has_its_picture_and_each_its_own_words(small) -> None:
    _, found, _ = small
    assert [row.label for row in found.rows] == [
        "base", *(f"{n}.safetensors at {w}" for n in range(3) for w in ("0", "0.8"))
    ]  # fmt: skip
    assert [(c.prompt, c.seed) for c in found.columns] == [(p, s) for p in PROMPTS for s in (3, 4)]
    assert {len(row.pictures) for row in found.rows} == {4}
    assert found.rows[1].requests[0].prompt == "a photo of sks cup"
    assert found.rows[-1].requests[0].prompt == "a photo of zwx jug"
    assert found.best is None and "what was it trained on" in found.why


def test_weight_0_is_the_base_and_other_weights_are_not(small) -> None:
    _, found, _ = small
    base = found.rows[0]
    for row in found.rows[1:]:
        same = row.requests[2:] == base.requests[2:]  # of prompts without words of an adapter's own
        assert same
        apart = max(off(a, b) for a, b in zip(row.pictures[2:], base.pictures[2:], strict=True))
        assert (apart <= 1) == (row.weight == 0), row.label


def test_a_picture_is_the_one_that_sample_makes(small, files: list[str], tmp_path: Path) -> None:
    """In another order of adapters, too: nothing of the one before remains."""
    _, found, _ = small
    for n in (2, 0):
        row = next(r for r in found.rows if r.adapter and r.adapter.file == Path(files[n]) and r.weight == 0.8)
        request = row.requests[1]
        made = finetune.sample(
            "pocket", [request.prompt], tmp_path / str(n), [(files[n], 0.8)], seed=request.seed, steps=request.steps,
            guidance=request.guidance, size=(request.width, request.height),
        )  # fmt: skip
        # one by one and in a batch sums are rounded otherwise
        assert off(Image.open(made[0].path), row.pictures[1]) <= 2


def test_exchanged_adapters_leave_nothing_behind_in_either_order(files: list[str]) -> None:
    session = Session.open("pocket", ["a star", ""])
    request = SampleRequest("a star", 1, "", 2, 3.0, 64, 64)
    first, second = ([AdapterWeight(Path(file))] for file in files[:2])

    def drawn(adapters: list[AdapterWeight]) -> np.ndarray:
        session.exchange(adapters)
        return pixels(session.generate(request).image)

    base, one, two = drawn([]), drawn(first), drawn(second)
    assert (drawn(first) == one).all() and (drawn([]) == base).all() and (drawn(second) == two).all()
    assert not (one == base).all() and not (one == two).all()


def test_the_base_is_opened_once_and_what_is_kept_is_not_generated_again(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counter[str]()
    load, generate = families.load, Session.generate_many
    monkeypatch.setattr(families, "load", lambda *a, **k: counted.update(["loads"]) or load(*a, **k))

    def counting(self, requests):
        for picture in generate(self, requests):
            counted.update(["pictures"])
            yield picture

    monkeypatch.setattr(Session, "generate_many", counting)
    wanted = ComparisonRequest(tuple(files[:2]), (1.0,), (), ("a star", "a cup"))
    events = compare(wanted, tmp_path)
    for _ in events:  # stopped after the first picture
        if counted["pictures"]:
            events.close()
    left = sum(1 for _ in tmp_path.glob("*.png"))
    assert 0 < left < 6 and counted["loads"] == 1
    unheard(compare(wanted, tmp_path))
    assert counted == {"loads": 2, "pictures": counted["pictures"]} and counted["pictures"] <= 6 + 1
    again = list(compare(wanted, tmp_path))
    assert counted["loads"] == 2 and not [e for e in again if isinstance(e, Stage) and e.name == "generating"]
    assert isinstance(again[0], Note) and again[0].text.startswith("6 pictures")
    pocket_adapter(Path(files[0]), 0, "sks", "cup", 0.5)  # another file of that name
    before = counted["pictures"]
    unheard(compare(wanted, tmp_path))
    assert counted["pictures"] == before + 2


def test_where_the_training_pictures_are_known_each_row_is_scored_and_one_is_taken(files, tmp_path: Path) -> None:
    wanted = ComparisonRequest(tuple(files[:2]), (0.5,), data=DATA)
    found = unheard(compare(wanted, tmp_path))
    assert not found.rows[0].scores
    for row in found.rows[1:]:
        assert {"likeness", "drift", "memorisation", "prompt"} <= set(row.scores) and row.seen.endswith("/10")
    likeness = [row.scores["likeness"].value for row in found.rows[1:]]
    inside = [row.scores["drift"].value <= 0.2 for row in found.rows[1:]]
    assert found.best is not None and found.rows[found.best].scores
    if all(inside):
        assert found.best == 1 + likeness.index(max(likeness))
    assert "likeness" in found.why


def test_what_was_not_judged_or_by_pictures_of_another_is_said(small, files, monkeypatch: pytest.MonkeyPatch) -> None:
    _, found, _ = small
    scored = {"likeness": Score(0.5, 0.4, 0.6)}
    rows = [row._replace(scores=scored if n in (1, 2, 3, 4) else {}) for n, row in enumerate(found.rows)]
    about = of_path(Path(files[0]), data=Path(DATA))
    said = list(compare_module._reservations(ComparisonRequest(()), rows, about))
    assert len(said) == 1 and said[0].startswith("2.safetensors not judged: ") and "'sks'" in said[0]
    monkeypatch.setattr(
        compare_module, "_recipe_of", lambda file: {"data": {"path": "ab" if "0." in file.name else "c"}}
    )
    judged = [row._replace(scores=scored) for row in found.rows]
    [other] = compare_module._reservations(ComparisonRequest(()), judged, about)
    assert other.endswith("of 0.safetensors, but 1.safetensors, 2.safetensors had others")
    assert not list(compare_module._reservations(ComparisonRequest((), data=DATA), judged, about))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"weights": (float("nan"),)}, "weight nan"),
        ({"weights": (1.0, 1.0)}, "one twice"),
        ({"weights": (1e9,)}, "1e\\+09"),
        ({"prompts": ()}, "what the adapters were trained on is not known"),
        ({"prompts": ("{red|blue}",)}, "red"),
        ({"prompts": (), "data": DATA}, "different triggers and class words: 0.safetensors 'sks cup'"),
        ({"steps": "all"}, "is no run"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_words(change, said: str, files: list[str], tmp_path: Path) -> None:
    wanted = ComparisonRequest(**{"adapters": tuple(files), "prompts": PROMPTS} | change)
    with pytest.raises(InputError, match=said) as refused:
        unheard(pages.begun(compare(wanted, tmp_path / "out" / "pictures"), wanted, tmp_path / "out"))
    assert refused.value.advice and not (tmp_path / "out").exists()


def test_an_adapter_twice_and_two_bases_are_refused(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="once more"):
        unheard(compare(ComparisonRequest((files[0], files[0]), prompts=PROMPTS), tmp_path))
    other = tmp_path / "other.safetensors"
    pocket_adapter(other, 5)
    told = {**weights.read_header(other).metadata, "finetune.base": "org/other", "finetune.recipe": ""}
    weights.write_tensors(weights.load_tensors(other), other, {k: v for k, v in told.items() if v})
    with pytest.raises(InputError, match=r"was made for pocket, .*other.safetensors for org/other"):
        unheard(compare(ComparisonRequest((files[0], str(other)), prompts=PROMPTS), tmp_path))


def test_steps_name_the_candidates_that_a_run_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(references, "steps", lambda _: {5: run, 10: run})
    assert compare_module._with_steps(str(run), "all") == [f"{run}@5", f"{run}@10"]
    assert compare_module._with_steps(str(run), (10,)) == [f"{run}@10"]
    assert compare_module._with_steps(f"{run}@5", "all") == [f"{run}@5"]
    assert compare_module._with_steps(str(run), ()) == [str(run)]


def test_names_are_shown_without_the_folders_that_all_have_in_common() -> None:
    assert shortened(["/a/b/x/1", "/a/b/y/1"]) == ["x/1", "y/1"]
    assert shortened(["runs/mug@5", "runs/mug@10"]) == ["mug@5", "mug@10"]
    assert shortened(["mug", "mug-2"]) == ["mug", "mug-2"] and shortened(["/a/b"]) == ["b"]


def test_the_command_writes_page_sheet_and_table_and_goes_on_but_never_over_another(
    files: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["compare", *files[:2], "--weights", "0.5", "--prompt", "a star", "--out", str(out)]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["page"] == str(out / "comparison.html") and len(told["rows"]) == 3
    assert told == {**json.loads((out / "comparison.json").read_text()), "page": told["page"]}
    with Image.open(out / "comparison.png") as sheet:
        assert sheet.width > 192
    again = CliRunner().invoke(app, [*words, "--quiet"])
    assert again.exit_code == 0 and again.stdout.strip().endswith("comparison.html")
    other = CliRunner().invoke(app, [*words, "--seed", "9"])
    assert isinstance(other.exception, RunError) and "another comparison" in other.exception.problem
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "keep.txt").write_text("x")
    mine = CliRunner().invoke(app, [*words[:-1], str(tmp_path / "mine")])
    assert isinstance(mine.exception, RunError) and "not empty" in mine.exception.problem
    for bad in (["--weights", "much"], ["--steps", "last"]):
        assert isinstance(CliRunner().invoke(app, [*words[:4], *bad]).exception, InputError)
