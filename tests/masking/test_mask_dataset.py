"""`finetune mask`: nothing that is there is lost, what is made stays, and the next call goes on."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image
from support.nasty_folder import picture
from typer.testing import CliRunner

from finetune import cli
from finetune.data.audit import audit
from finetune.data.dataset import read_dataset
from finetune.data.masks import open_mask
from finetune.data.prepare import prepare
from finetune.errors import DataError, Interrupted
from finetune.events import Advanced, Stage, Warned, unheard
from finetune.masking.dataset import Masked, mask_dataset
from finetune.masking.masker import MadeMask

SIZE = (96, 64)


def half(grey: int = 255) -> Image.Image:
    mask = Image.new("L", SIZE)
    mask.paste(grey, (0, 0, 48, 64))
    return mask


class Maker:
    """Answers in turn, and remembers what it was asked."""

    batch = 2

    def __init__(self, *answers: object) -> None:
        self.answers, self.asked = list(answers), list[str]()

    def check(self) -> None:
        pass

    def __call__(self, files: Sequence[Path]) -> list[MadeMask]:
        made = []
        for file in files:
            self.asked.append(file.name)
            answer = self.answers.pop(0) if self.answers else half()
            if isinstance(answer, BaseException):
                raise answer
            made.append(answer if isinstance(answer, MadeMask) else MadeMask(answer))  # type: ignore[arg-type]
        return made


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Five pictures, of which a person masked the third."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for i in range(5):
        picture(i, SIZE).save(raw / f"{i}.png")
    half(77).save(raw / "2-mask.png")
    prepare(raw, tmp_path / "ds", trigger="sks", class_word="mug")
    return tmp_path / "ds"


def mask(path: Path, maker: Maker, again: bool = False) -> Masked:
    return unheard(mask_dataset(path, lambda word: maker if word == "mug" else Maker(ValueError()), again))


def named(dataset: Path) -> list[object]:
    """The masks that the table names."""
    rows = (dataset / "metadata.jsonl").read_text().splitlines()
    return [json.loads(row).get("mask_file_name") for row in rows]


def test_pictures_without_a_mask_get_one_and_a_persons_stays(dataset: Path) -> None:
    before, maker = (dataset / "masks/2.png").read_bytes(), Maker()
    done = mask(dataset, maker)
    assert maker.asked == ["0.png", "1.png", "3.png", "4.png"] and done.kept == 1 and not done.refused
    assert done.masks == {f"images/{i}.png": f"masks/{i}.png" for i in (0, 1, 3, 4)}
    assert (dataset / "masks/2.png").read_bytes() == before
    made = read_dataset(dataset)
    assert made.masked == 5
    for example in made.examples:
        assert example.mask and open_mask(example.mask).tobytes() == half(77 if "2" in example.name else 255).tobytes()
    report = audit(dataset)
    assert not report.problems and report.files == report.seen + report.captions + report.masks
    rows = [json.loads(line) for line in (dataset / "metadata.jsonl").read_text().splitlines()]
    assert named(dataset) == [f"masks/{i}.png" for i in range(5)] and all(row["text"] for row in rows)


def test_again_makes_those_that_this_command_made_and_never_a_persons(dataset: Path) -> None:
    mask(dataset, Maker())
    assert mask(dataset, idle := Maker()).masks == {} and idle.asked == []
    done = mask(dataset, maker := Maker(*[half(200)] * 4), again=True)
    assert maker.asked == ["0.png", "1.png", "3.png", "4.png"] and done.kept == 1
    greys = {Image.open(dataset / f"masks/{i}.png").getextrema()[1] for i in range(5)}
    assert greys == {77, 200} and read_dataset(dataset).masked == 5


def test_masks_that_the_table_does_not_name_yet_are_found_and_made_again_in_their_place(dataset: Path) -> None:
    """As after a call that was killed."""
    mask(dataset, Maker())
    rows = [json.loads(line) for line in (dataset / "metadata.jsonl").read_text().splitlines()]
    told = [{k: v for k, v in row.items() if k != "mask_file_name"} for row in rows]
    (dataset / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    assert read_dataset(dataset).masked == 5
    mask(dataset, Maker(), again=True)
    assert sorted(p.name for p in (dataset / "masks").iterdir()) == [f"{i}.png" for i in range(5)]
    assert not audit(dataset).problems and read_dataset(dataset).masked == 5


def test_what_is_no_mask_is_refused_by_name_and_counted(dataset: Path) -> None:
    maker = Maker(Image.new("L", SIZE), half(), Image.new("L", SIZE, 255), MadeMask(None, "it died"))
    events = list(mask_dataset(dataset, lambda _: maker))
    (warned,) = [e.text for e in events if isinstance(e, Warned)]
    assert warned.startswith("3 of 4 pictures got no mask, and are learnt whole: ")
    for said in ("empty: nothing was found (1, such as 0.png)", "whole: nothing was left out (1, such as 3.png)",
                 "it died (1, such as 4.png)"):  # fmt: skip
        assert said in warned
    assert [e for e in events if isinstance(e, Stage | Advanced)][-2:] == [Advanced(2), Advanced(4)]
    assert read_dataset(dataset).masked == 2


def test_nothing_but_nonsense_is_an_error_and_leaves_no_mask(dataset: Path) -> None:
    with pytest.raises(DataError, match=r"none of 4 pictures got a mask: it died \(4, such as 0.png\)"):
        mask(dataset, Maker(*[MadeMask(None, "it died")] * 4))
    assert [p.name for p in (dataset / "masks").iterdir()] == ["2.png"] and read_dataset(dataset).masked == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_what_was_made_stays_however_it_ends_and_the_next_call_goes_on(
    dataset: Path, stop: Callable[[], BaseException]
) -> None:
    with pytest.raises(Interrupted if stop is KeyboardInterrupt else MemoryError) as left:
        mask(dataset, Maker(half(), half(), stop()))
    if stop is KeyboardInterrupt:
        assert "2 masks are written" in str(left.value)
    assert named(dataset) == ["masks/0.png", "masks/1.png", "masks/2.png", None, None], "the table has them"
    assert read_dataset(dataset).masked == 3 and not audit(dataset).problems
    done = mask(dataset, maker := Maker())
    assert maker.asked == ["3.png", "4.png"] and done.kept == 3 and read_dataset(dataset).masked == 5


def test_pictures_of_one_name_get_a_mask_each(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    picture(0, SIZE).save(raw / "a.png")
    picture(1, SIZE).save(raw / "a.jpg")
    prepare(raw, tmp_path / "ds", trigger="sks", class_word="mug")
    assert sorted(mask(tmp_path / "ds", Maker(half(90))).masks.values()) == ["masks/a-2.png", "masks/a.png"]
    greys = [open_mask(e.mask).getextrema()[1] for e in read_dataset(tmp_path / "ds").examples if e.mask]
    assert sorted(greys) == [90, 255] and not audit(tmp_path / "ds").problems  # type: ignore[type-var]


def test_names_that_differ_in_capitals_are_two_files_everywhere(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "ds"
    raw.mkdir()
    picture(0, SIZE).save(raw / "CUP.png")
    half(77).save(raw / "CUP-mask.png")
    picture(1, SIZE).save(raw / "cup.jpg")
    prepare(raw, out, trigger="sks", class_word="mug")
    assert mask(out, Maker()).masks == {"images/cup.jpg": "masks/cup-2.png"}


def test_a_mask_of_a_killed_call_is_not_taken_for_two_pictures_of_one_name(tmp_path: Path) -> None:
    """Killed before the table said whose it is; a person's is shared, as everywhere."""
    raw, out = tmp_path / "raw", tmp_path / "ds"
    raw.mkdir()
    picture(0, SIZE).save(raw / "a.png")
    picture(1, SIZE).save(raw / "a.jpg")
    prepare(raw, out, trigger="sks", class_word="mug")
    plain = (out / "metadata.jsonl").read_bytes()
    mask(out, Maker(half(90)))
    (out / "metadata.jsonl").write_bytes(plain)
    (out / "masks/a-2.png").unlink()
    assert read_dataset(out).masked == 2, "by its name"
    done = mask(out, Maker(half(110), half(130)))
    assert done.kept == 0 and sorted(done.masks.values()) == ["masks/a-2.png", "masks/a.png"]
    greys = [open_mask(e.mask).getextrema()[1] for e in read_dataset(out).examples if e.mask]
    assert sorted(greys) == [110, 130]  # type: ignore[type-var]
    (out / "metadata.jsonl").write_bytes(plain)
    (out / "masks/a-2.png").unlink()
    half(77).save(out / "masks/a.png")
    assert mask(out, idle := Maker()).kept == 2 and not idle.asked


def test_a_raw_folder_is_to_be_prepared_first(tmp_path: Path) -> None:
    picture(0, SIZE).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="is not a prepared dataset"):
        mask(tmp_path, Maker())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png"]


# --- the command -----------------------------------------------------------------------------------------------------


def command(*words: str) -> tuple[int, str]:
    found = CliRunner().invoke(cli.app, ["mask", *words])
    assert not isinstance(found.exception, Exception) or isinstance(found.exception, DataError), found.exception
    return found.exit_code, found.output


def test_the_command_masks_by_the_background_and_by_a_program(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for i, ground in enumerate(("white", "navy", "gray")):
        shown = Image.new("RGB", SIZE, ground)
        shown.paste((200, 30 + i, 30), (20, 20, 50, 50))
        shown.save(raw / f"{i}.png")
    picture(9, SIZE).save(raw / "9.png")
    out = tmp_path / "ds"
    prepare(raw, out, trigger="sks", class_word="mug")
    code, said = command(str(out), "--with", "background")
    assert code == 0 and "3 masks" in said and "9.png: the background is not of one colour" in said
    program = tmp_path / "half.py"
    program.write_text("import sys\nfrom PIL import Image\nsize = Image.open(sys.argv[1]).size\n"
                       "Image.linear_gradient('L').resize(size).save(sys.argv[2])\n")  # fmt: skip
    code, said = command(str(out), "--command", f"'{sys.executable}' '{program}' {{image}} {{mask}}", "--json")
    told = json.loads(said)
    assert (code, told["masked"], told["kept"], list(told["masks"])) == (0, 1, 3, ["images/9.png"])
    code, said = command(str(out), "--with", "background")
    assert code == 0 and "nothing to mask" in said
