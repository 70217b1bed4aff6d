"""Maskers: what each makes of pictures, and what is no mask."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from support import maskers
from support.nasty_folder import picture

from finetune.errors import BaseError, DataError, InputError
from finetune.masking.background import Background, cut_out
from finetune.masking.choice import MaskerChoice
from finetune.masking.masker import MadeMask, screened_mask
from finetune.masking.model import MaskModel
from finetune.masking.program import MaskProgram

# --- screening -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grey", "said"), [(0, "empty"), (255, "whole"), (128, "")])
def test_an_empty_and_a_whole_mask_are_none(grey: int, said: str) -> None:
    found = screened_mask(MadeMask(Image.new("L", (40, 30), grey)))
    assert found.problem.startswith(said) and (found.grey is None) == bool(said)
    assert screened_mask(MadeMask(None, "it died")).problem == "it died"


@pytest.mark.parametrize(("px", "said"), [(0, "empty: nothing"), (9, "less than 0.2% of"), (14, ""), (101, "whole: ")])
def test_so_little_and_so_much_of_a_picture_is_no_mask(px: int, said: str) -> None:
    """Of 300 x 300: 0.1% and 99.4% are none, 0.22% is one."""
    grey = Image.new("L", (300, 300), 255 if px == 101 else 0)
    grey.paste(0 if px == 101 else 255, (10, 10, 10 + min(px, 23), 10 + min(px, 23)))
    found = screened_mask(MadeMask(grey))
    assert found.problem.startswith(said) and bool(found.problem) == bool(said)


# --- the colour of the background ------------------------------------------------------------------------------------


def product(ground: tuple[int, int, int], size: tuple[int, int] = (300, 200)) -> tuple[Image.Image, np.ndarray]:
    """A red disc with a label in the colour of the ground, and what of the picture is its own."""
    shown, own = Image.new("RGB", size, ground), Image.new("L", size)
    for image, colour in ((shown, (200, 20, 30)), (own, 255)):
        ImageDraw.Draw(image).ellipse((60, 40, 180, 160), fill=colour)
    ImageDraw.Draw(shown).rectangle((100, 90, 140, 110), fill=ground)
    return shown, np.asarray(own) > 0


def overlap(found: MadeMask, own: np.ndarray) -> float:
    assert found.grey is not None, found.problem
    mask = np.asarray(found.grey) > 127
    return float((mask & own).sum() / (mask | own).sum())


@pytest.mark.parametrize("ground", [(255, 255, 255), (20, 20, 20), (150, 150, 150), (70, 120, 225)])
def test_a_product_on_one_colour_is_cut_out_with_all_that_it_encloses(ground: tuple[int, int, int]) -> None:
    shown, own = product(ground)
    found = cut_out(shown)
    assert found.grey is not None and found.grey.size == shown.size and found.grey.mode == "L"
    assert overlap(found, own) > 0.97
    assert overlap(cut_out(shown.filter(ImageFilter.GaussianBlur(1))), own) > 0.95
    noise = np.random.default_rng(0).normal(0, 5, (200, 300, 3))
    noisy = Image.fromarray(np.clip(np.asarray(shown) + noise, 0, 255).astype(np.uint8))
    assert overlap(cut_out(noisy), own) > 0.95


def test_a_product_that_touches_the_border_is_cut_out_too() -> None:
    shown, _ = product((255, 255, 255))
    assert overlap(cut_out(shown.crop((0, 0, 300, 120))), _cropped()) > 0.95


def _cropped() -> np.ndarray:
    return product((255, 255, 255))[1][:120]


def test_a_large_picture_is_looked_at_smaller_and_its_mask_is_as_large() -> None:
    shown, own = product((255, 255, 255))
    large = shown.resize((1500, 1000), Image.Resampling.BICUBIC)
    found = cut_out(large)
    assert found.grey is not None and found.grey.size == (1500, 1000)
    assert overlap(found, np.kron(own, np.ones((5, 5), bool))) > 0.97


def test_a_product_a_little_darker_than_its_ground_is_told_from_it() -> None:
    """By 60 of 441 levels, on a ground that is lit unevenly by 25."""
    light = np.linspace(193, 207, 300)[None, :, None].repeat(200, 0).repeat(3, 2).astype(np.uint8)
    _, own = product((200, 200, 200))
    light[own] = 165
    assert overlap(cut_out(Image.fromarray(light)), own) > 0.97


def test_the_ground_is_followed_into_bays_from_every_side() -> None:
    """A U, opened to each side in turn: what is seen in it is ground."""
    for turns in range(4):
        own = np.zeros((200, 200), bool)
        own[50:150, 50:150], own[50:120, 80:120] = True, False
        own = np.rot90(own, turns)
        shown = Image.fromarray(np.where(own[..., None], (20, 90, 60), (230, 230, 230)).astype(np.uint8))
        assert overlap(cut_out(shown), own) > 0.97, turns


@pytest.mark.parametrize(("table_px", "said"), [(30, ""), (60, "the background is not of one colour")])
def test_a_quarter_of_the_border_may_be_of_other_colours(table_px: int, said: str) -> None:
    """Beside a product is a table, along 18 % of the border, or along 42 %."""
    shown, _ = product((240, 240, 240))
    shown.paste((110, 70, 40), (0 if said else 150, 200 - table_px, 300, 200))
    assert cut_out(shown).problem == said


def test_dust_is_no_product_and_thin_parts_of_one_are() -> None:
    shown, own = product((245, 245, 245), (400, 300))
    draw, thin = ImageDraw.Draw(shown), Image.new("L", (400, 300))
    for x, y in ((20, 20), (300, 40), (350, 250), (30, 280), (199, 3)):
        draw.rectangle((x, y, x + 1, y + 1), fill=(90, 90, 90))
    for image, colour in ((draw, (200, 20, 30)), (ImageDraw.Draw(thin), 255)):
        image.line((150, 60, 330, 60), fill=colour, width=2)
    found = cut_out(shown)
    assert found.grey is not None
    mask = np.asarray(found.grey) > 127
    assert not mask[:, 340:].any() and not mask[200:].any() and not mask[:30].any(), "no dust"
    assert mask[58:63, 200:325].any(0).all() and overlap(found, own | (np.asarray(thin) > 0)) > 0.9
    chain = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(chain).ellipse((40, 20, 260, 180), outline="black", width=2)
    assert screened_mask(cut_out(chain)).grey is not None, "thin everywhere, and all that there is"


def test_a_frame_is_not_taken_for_the_background_and_a_box_on_one_is_cut_out() -> None:
    scan, _ = product((250, 250, 250))
    ImageDraw.Draw(scan).rectangle((0, 0, 299, 199), outline="black", width=4)
    assert cut_out(scan).problem == "only a thin frame around it is of one colour: crop that away"
    book = Image.new("RGB", (300, 200), "white")
    book.paste((30, 60, 90), (30, 20, 270, 180))
    found = cut_out(book)
    assert found.grey is not None and 0.6 < np.asarray(found.grey).mean() / 255 < 0.68


def test_a_background_of_many_colours_is_refused() -> None:
    assert cut_out(picture(1, (96, 64))).problem == "the background is not of one colour"
    ramp = Image.linear_gradient("L").convert("RGB")
    assert cut_out(ramp).problem == "the background is not of one colour"
    assert screened_mask(cut_out(Image.new("RGB", (64, 64), "gray"))).problem.startswith("empty")


# --- programs --------------------------------------------------------------------------------------------------------


def program(code: str, timeout_s: float = 60) -> MaskProgram:
    return MaskProgram(f"'{sys.executable}' -c \"{code}\" {{image}} {{mask}}", timeout_s)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a b;$(x).png"
    product((255, 255, 255))[0].save(path)
    return path


DRAW = "import sys; from PIL import Image; Image.new('L', {size}, 99).save(sys.argv[2])"
ANSWERS = {
    "a mask": (DRAW.format(size="(300, 200)"), ""),
    "a smaller mask": (DRAW.format(size="(150, 100)"), ""),
    "another shape": (DRAW.format(size="(30, 200)"), "what the program wrote has 30 x 200 px, which is not the shape"),
    "the picture": ("import sys, shutil; shutil.copy(*sys.argv[1:])", "what the program wrote is in colour"),
    "nothing": ("pass", "the program wrote no mask"),
    "text": ("import sys; open(sys.argv[2], 'w').write('x')", "what the program wrote cannot be used: "),
    "an error": ("import sys; sys.exit('no GPU')", "the program ended with exit code 1: no GPU"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_what_a_program_writes_is_the_mask_or_the_reason_why_there_is_none(kind: str, file: Path) -> None:
    code, said = ANSWERS[kind]
    (answer,) = program(code)([file])
    assert answer.problem.startswith(said) and bool(answer.problem) == bool(said)
    assert (answer.grey is None) == bool(said)


def test_a_program_that_hangs_is_left(file: Path) -> None:
    (answer,) = program("import time; time.sleep(60)", timeout_s=0.2)([file])
    assert answer.problem == "the program took longer than 0.2 s"


def test_a_command_that_cannot_be_is_refused_at_once() -> None:
    for command, why in (("rembg {image}", r"has no \{mask\}"), ("x {mask}", r"has no \{image\}"), ("'", "cannot be")):
        with pytest.raises(DataError, match=why):
            MaskProgram(command)
    with pytest.raises(DataError, match="no program 'no-such-program'"):
        MaskProgram("no-such-program {image} {mask}").check()


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return maskers.clipseg(tmp_path_factory.mktemp("clipseg"))


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return maskers.sam(tmp_path_factory.mktemp("sam"))


def test_a_model_masks_in_the_pictures_own_size_and_leaves_chance_alone(clipseg: Path, sam: Path, file: Path) -> None:
    before = torch.random.get_rng_state()
    for folder in (clipseg, sam):
        first, again = (MaskModel(str(folder), "mug")([file])[0] for _ in range(2))
        assert first.grey is not None and first.grey.size == (300, 200) and again.grey is not None
        assert set(first.grey.tobytes()) <= {0, 255} and first.grey.tobytes() == again.grey.tobytes()
    assert torch.equal(before, torch.random.get_rng_state())


def test_clipseg_is_asked_for_the_word_and_what_is_likely_is_white(clipseg: Path, file: Path) -> None:
    asked, seen = MaskModel(str(clipseg), "a mug"), []

    class Left:
        device = torch.device("cpu")

        def __call__(self, **inputs: torch.Tensor) -> SimpleNamespace:
            seen.append(inputs)
            logits = torch.full((1, 32, 32), -9.0)
            logits[:, :, :8], logits[:, :, 8:12] = 9.0, -0.1  # 0.475: likely enough
            return SimpleNamespace(logits=logits)

    asked.model = Left()
    (found,) = asked([file])
    assert found.grey is not None
    share = np.asarray(found.grey).mean(0) / 255
    assert share[:105].all() and not share[116:].any()
    assert asked.processor.tokenizer.decode(seen[0]["input_ids"][0], skip_special_tokens=True) == "a mug"
    asked.model.__class__.__call__ = lambda self, **_: SimpleNamespace(logits=torch.full((1, 32, 32), torch.nan))  # type: ignore[method-assign,assignment,misc]
    assert asked([file])[0].problem == "the model's output is not finite (NaN or infinity)"


def test_sam_is_asked_for_the_middle_and_its_best_mask_is_taken(sam: Path, file: Path) -> None:
    """A picture that is wider than high lies in the upper part of what the model sees."""
    asked, seen = MaskModel(str(sam), ""), []

    class Three:
        device = torch.device("cpu")

        def __call__(self, **inputs: torch.Tensor) -> SimpleNamespace:
            seen.append(inputs)
            masks = torch.full((1, 1, 3, 16, 16), -9.0)
            masks[0, 0, 1, :, 8:] = 9.0
            return SimpleNamespace(pred_masks=masks, iou_scores=torch.tensor([[[0.1, 0.9, 0.5]]]))

    asked.model = Three()
    (found,) = asked([file])
    assert found.grey is not None
    share = np.asarray(found.grey).mean(0) / 255
    assert not share[:140].any() and share[160:].all()
    assert_middle = seen[0]["input_points"].flatten().tolist()
    assert assert_middle == pytest.approx([32, 21.5], abs=0.6)


def test_a_model_that_makes_no_masks_is_refused(tmp_path: Path, clipseg: Path) -> None:
    from support import captioners

    with pytest.raises(BaseError, match="not a supported segmentation model: its type is blip"):
        MaskModel(str(captioners.blip(tmp_path / "blip")), "mug")
    with pytest.raises(BaseError, match="there is no folder absent"):
        MaskModel("absent", "mug")
    with pytest.raises(DataError, match="needs to know what to find"):
        MaskModel(str(clipseg), "")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/config.json").write_text('{"model_type": "sam"}')
    (tmp_path / "pickled/pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(BaseError, match="pickled weights only"):
        MaskModel(str(tmp_path / "pickled"), "")


def test_half_a_model_is_refused(tmp_path: Path, clipseg: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    half = tmp_path / "half"
    shutil.copytree(clipseg, half)
    tensors = load_file(half / "model.safetensors")
    save_file(dict(list(tensors.items())[5:]), half / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseError, match="of the model's tensors are missing"):
        MaskModel(str(half), "mug")


# --- choosing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (MaskerChoice(), "no masker"),
        (MaskerChoice("background", "x {image} {mask}"), "more than one masker"),
        (MaskerChoice("background", prompt="mug"), "`prompt` has no effect without a model"),
        (MaskerChoice(command="x {image} {mask}", prompt="mug"), "`prompt` has no effect without a model"),
        (MaskerChoice("background", timeout_s=0), "timeout"),
    ],
)
def test_a_choice_that_cannot_be_is_a_sentence(choice: MaskerChoice, said: str) -> None:
    with pytest.raises(InputError, match=said):
        choice.check()


def test_the_class_word_is_looked_for_unless_something_else_is_said(clipseg: Path) -> None:
    for prompt, named in (("", "mug"), ("blue mug", "blue mug")):
        made = MaskerChoice(str(clipseg), prompt=prompt).make("mug")
        assert isinstance(made, MaskModel) and made.named == named
    assert isinstance(MaskerChoice("background").make(None), Background)
