"""Prompt files with options for each prompt: our own names, kohya's and ai-toolkit's letters, JSON and TOML."""

from pathlib import Path

import pytest
from PIL import Image
from support.command import said, sampled

from finetune import families
from finetune.errors import InputError
from finetune.families.base import BaseInfo
from finetune.sampling.prompt_file import read_prompts
from finetune.sampling.request import PromptOptions, SampleRequest, SampleSet

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

FULL = PromptOptions("blurry", 42, 4, None, 3.0, 64, 96)
LINES = {
    "kohya": "a red mug --n blurry --w 64 --h 96 --d 42 --s 4 --l 3",
    "kohya in another order": "a red mug --s 4 --l 3 --h 96 --d 42 --w 64 --n blurry",
    "ai-toolkit": "a red mug --seed 42 --width 64 --height 96 --steps 4 --cfg 3 --neg blurry",
    "an equals sign": "a red mug --n=blurry --w=64 --h=96 --d=42 --s=4 --l=3",
}


def file(folder: Path, text: str, name: str = "prompts.txt") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def options(path: Path) -> list[tuple[str, PromptOptions]]:
    return [(line.prompt.text, line.options._replace(where="")) for line in read_prompts(path).lines]


@pytest.mark.parametrize("kind", LINES)
def test_a_line_of_another_trainer_means_the_same_here(kind: str, tmp_path: Path) -> None:
    assert options(file(tmp_path, LINES[kind])) == [("a red mug", FULL)]


def test_a_line_may_have_the_commands_own_names(tmp_path: Path) -> None:
    line = "a red mug --negative blurry --size 64x96 --seed 42 --steps 4 --guidance 3\na blue mug"
    assert options(file(tmp_path, line)) == [
        ("a red mug", FULL._replace(cfg=None, guidance=3.0)), ("a blue mug", PromptOptions()),
    ]  # fmt: skip


ENTRY = (
    '{"prompt": "a red mug", "negative_prompt": "blurry", "width": 64, "height": 96, "seed": 42, "sample_steps": 4, '
    '"scale": 3}'
)
FILES = {
    "list.json": f'[{ENTRY}, "a blue mug"]',
    "prompts.json": f'{{"prompts": [{ENTRY}, "a blue mug"]}}',
    "library.json": f'{{"red": {ENTRY}, "blue": "a blue mug"}}',
    "kohya.toml": "[prompt]\nseed = 42\nscale = 3.0\n[[prompt.subset]]\nprompt = 'a red mug'\n"
                  "negative_prompt = 'blurry'\nwidth = 64\nheight = 96\nsample_steps = 4\n",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_json_and_toml_as_others_have_them(name: str, tmp_path: Path) -> None:
    first, *rest = options(file(tmp_path, FILES[name], name))
    assert first == ("a red mug", FULL) and rest in ([], [("a blue mug", PromptOptions())])


def test_remarks_are_no_prompts_and_counted_and_the_trigger_of_others_is_ours(tmp_path: Path) -> None:
    path = file(tmp_path, "# sheet\na [trigger] mug --n [name] --s 4\n## more\n")
    found = read_prompts(path)
    assert options(path) == [("a {trigger} mug", PromptOptions("{trigger}", steps=4))]
    assert "begin with # are remarks, and no prompts: 2" in found.notes[0] and "line 2: [trigger] is" in found.notes[1]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_files_of_windows_are_read(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("a mug ü\r\na cup\r\n".encode(encoding))
    assert [text for text, _ in options(tmp_path / "p.txt")] == ["a mug ü", "a cup"]


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("a mug --ss euler_a", "line 1: --ss is no option of a prompt here", "`scheduler`"),
        ("a mug --am 0.5", "line 1: --am is no option", "FILE:weight"),
        ("a mug --blue", "line 1: --blue is no option", "negative, size, seed, steps and guidance"),
        ("a mug --d 1,2", "line 1: --d '1,2' is not a whole number", "`count`"),
        ("a mug --w 512.5", "'512.5' is not a whole number", ""),
        ("a mug --s 0", "line 1: --s must be at least 1", ""),
        ("a mug --l much", "'much' is not a number", ""),
        ("a mug --size 512", "--size 512 is not a size", "WIDTHxHEIGHT"),
        ("a mug --w 64 --width 96", "--width says 96, and before it is 64", "keep one"),
        ("--w 64", "options and no prompt", "before them"),
        ("#1 dad mug", "a remark, or a prompt?", "space after the #"),
        ("a mug --n (blurry:1.2)", "(blurry:1.2) is a weight", "without brackets"),
        ("# only this", "has no prompt", ""),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(text: str, problem: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_prompts(file(tmp_path, text))
    assert problem in caught.value.problem and hint in caught.value.hint and caught.value.hint


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{}", "has no prompt"), ("3", "no list of prompts"), ("[3]", "entry 1 is no prompt"), ("[", "is not JSON"),
     ('[{"prompt": 3}]', "entry 1 must have one prompt"), ('[{"prompt": "a", "seed": true}]', "seed True is not"),
     ('[{"prompt": "a", "mood": 1}]', "entry 1: mood is no option"), ('[{"prompt": "a", "seed": 1.5}]', "seed 1.5 is")],
)  # fmt: skip
def test_json_that_is_no_prompts_is_named(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=problem):
        read_prompts(file(tmp_path, text, "p.json"))


# --- what is generated ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pocket() -> BaseInfo:
    return families.detect("pocket")


def test_each_prompt_has_its_own_and_else_what_is_asked_for_all(pocket: BaseInfo) -> None:
    wanted = SampleSet(["a", "b"], "dark", 7, 2, 6, 5.0, (64, 64), options=[FULL, PromptOptions()])
    rows = wanted.requests(pocket)
    assert rows[0] == [SampleRequest("a", 42, "blurry", 4, 3.0, 64, 96), SampleRequest("b", 7, "dark", 6, 5.0, 64, 64)]
    assert [request.seed for request in rows[1]] == [43, 8] and wanted.negatives == ["dark", "blurry"]


def test_the_two_guidances_of_kohya_are_one_or_a_question(pocket: BaseInfo) -> None:
    def guidance(base: BaseInfo, **own: float) -> float:
        return SampleSet(["a"], options=[PromptOptions(where="line 1", **own)]).requests(base)[0][0].guidance  # type: ignore[arg-type]

    told = pocket._replace(guided=True)
    assert guidance(pocket, cfg=3) == guidance(pocket, guidance=3) == guidance(pocket, cfg=3, guidance=3) == 3
    assert guidance(told, guidance=3.5, cfg=1) == 3.5 and guidance(told, cfg=1) == pocket.guidance
    with pytest.raises(InputError, match="line 1: two different guidances, 3 and 4"):
        guidance(pocket, cfg=3, guidance=4)
    with pytest.raises(InputError, match="line 1: classifier-free guidance"):
        guidance(told, cfg=3)


def test_an_option_that_does_not_fit_the_base_is_named_with_its_line(pocket: BaseInfo) -> None:
    for own, problem in (
        (PromptOptions(width=60), "line 1: `size` 60x64"),
        (PromptOptions(negative="b", cfg=1), "line 1: `negative` has no effect"),
    ):
        with pytest.raises(InputError, match=problem):
            SampleSet(["a"], options=[own._replace(where="line 1")]).requests(pocket)


def test_the_command_makes_what_each_line_asks_for(tiny: str, tmp_path: Path, capsys) -> None:
    path = file(tmp_path, f"# sheet\n{LINES['kohya']}\na blue mug\n")
    code, printed = sampled(capsys, "--base", tiny, "--prompts", path, "--steps", 1, "--size", "64x64", "--prompt",
                            "a [trigger]", "--trigger", "sks", "--count", 2, "--out", tmp_path / "out")  # fmt: skip
    assert code == 0 and "are remarks" in printed and "--prompt 1: [trigger] is" in printed, printed
    assert sorted(p.name for p in (tmp_path / "out").glob("0*")) == [
        "00-0.png", "00-1.png", "01-42.png", "01-43.png", "02-0.png", "02-1.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "out" / "01-43.png") as image:
        assert image.size == (64, 96)
        told = image.text  # type: ignore[attr-defined]
    wanted = {"prompt": "a red mug", "negative": "blurry", "seed": "43", "steps": "4", "guidance": "3.0"}
    assert {key: told[key] for key in wanted} == wanted
    with Image.open(tmp_path / "out" / "02-0.png") as image:
        assert image.text["steps"] == "1" and not image.text["negative"]  # type: ignore[attr-defined]


def test_a_comparison_takes_no_options_of_single_prompts(tmp_path: Path, capsys) -> None:
    path = file(tmp_path, LINES["kohya"])
    code, _, error = said(capsys, "compare", "a.safetensors", "--prompts", path, "--out", tmp_path / "out")
    assert code == 2 and "line 1 has options of its own" in error, error
