"""The audit names copies, leaks, soft and bordered pictures and one background, and prepare repairs what it names."""

import random
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from support.scenes import as_jpeg, barred, mirrored, scene, scenes

from finetune.data.audit import Audit, audit
from finetune.data.example import MaskFile
from finetune.data.images.looks import LOOKS
from finetune.data.prepare import prepare, preparing
from finetune.data.quality.advice import FAULT_KINDS, findings_lines, fixes, unrepaired
from finetune.data.quality.caption_report import caption_report, caption_sentences
from finetune.data.quality.faults import AuditFindings, find_faults
from finetune.data.quality.repairs import repaired
from finetune.data.quality.thresholds import THRESHOLD_LIMITS, USUAL_THRESHOLDS, read_thresholds, thresholds_of
from finetune.data.text.wording import CaptionWords
from finetune.errors import InputError
from finetune.events import Warned

WORDS = {"trigger": "sks", "class_word": "mug"}
APART = {"blurred": 4.0, "upscaled": 1.7}
"""thresholds between which a picture lies that was enlarged 2.6 times, and below which one blurred by 6 px does not"""


def add(folder: Path, name: str, image: Image.Image, caption: str = "") -> None:
    image.save(folder / name)
    (folder / name).with_suffix(".txt").write_text(caption or f"a sks mug called {name[:-4]}")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four sound pictures, and one of each fault."""
    folder = scenes(tmp_path / "photos", 4)
    add(folder, "copy.jpg", as_jpeg(scene(0).resize((120, 120)), 60))
    add(folder, "turned.png", mirrored(scene(1)))
    add(folder, "soft.png", scene(5).filter(ImageFilter.GaussianBlur(6)))
    add(folder, "blown.png", scene(6, 80).resize((208, 208), Image.Resampling.BICUBIC))
    add(folder, "bars.png", barred(scene(7), 24))
    return folder


def found_in(folder: Path, **thresholds: float) -> tuple[Audit, AuditFindings]:
    report = audit(folder, **WORDS)
    return report, find_faults(report, 512, thresholds_of(APART | thresholds))


def test_each_fault_is_found_and_sound_pictures_have_none(data: Path) -> None:
    _, found = found_in(data)
    assert {name: [fault.kind for fault in faults] for name, faults in found.faults.items()} == {
        "copy.jpg": ["near duplicate"], "turned.png": ["near duplicate"], "soft.png": ["blurred"],
        "blown.png": ["upscaled"], "bars.png": ["border"],
    }  # fmt: skip
    assert found.of_kind("near duplicate") == {"copy.jpg": "like 0.png", "turned.png": "1.png mirrored"}
    assert found.of_kind("border") == {"bars.png": "top 24 px, bottom 24 px"}
    assert found.cropped == {"bars.png": (0, 24, 160, 184)} and found.background is None
    assert fixes(found) == ["leave out 2 near-duplicates", "crop the border of 1 image"]
    assert list(unrepaired(found)) == ["blurred", "upscaled"]


def test_every_threshold_moves_what_is_said(data: Path) -> None:
    usual = found_in(data)[1]
    add(data, "cut.png", scene(2).crop((4, 4, 156, 156)))
    (distance,) = (one.distance for group in found_in(data)[1].groups for one in group.others if one.name == "cut.png")
    assert distance and "cut.png" in found_in(data, similar=distance)[1].of_kind("near duplicate")
    assert "cut.png" not in found_in(data, similar=distance - 1)[1].of_kind("near duplicate")
    assert not found_in(data, blurred=32)[1].of_kind("blurred")
    assert not found_in(data, upscaled=32)[1].of_kind("upscaled") and usual.of_kind("upscaled")
    assert not found_in(data, border=0.2)[1].faults.get("bars.png") and not found_in(data, border=0.2)[1].cropped
    grey = Image.blend(scene(8), scene(8).convert("L").convert("RGB"), 0.85)
    light = zip(grey.split(), (1, 0.6, 0.3), strict=True)
    orange = Image.merge("RGB", [c.point(lambda v, k=k: round(v * k)) for c, k in light])
    add(data, "tinted.png", orange)
    assert "tinted.png" in found_in(data, cast=0.3)[1].of_kind("colour cast")
    assert not found_in(data, cast=4)[1].of_kind("colour cast")


def test_the_size_that_is_trained_at_decides_whether_a_picture_is_too_soft(data: Path) -> None:
    report = audit(data, **WORDS)
    apart = thresholds_of(APART)
    assert "blown.png" in find_faults(report, 512, apart).of_kind("upscaled")
    assert "blown.png" not in find_faults(report, 48, apart).of_kind("upscaled")
    assert not find_faults(report, 24).of_kind("blurred")


def hold_out(report: Audit, *names: str) -> Audit:
    used = [e._replace(attributes=e.attributes._replace(held_out=True)) if e.name in names else e for e in report.used]
    return replace(report, used=tuple(used))


def test_a_training_picture_that_a_held_out_one_shows_is_a_leak(data: Path) -> None:
    found = find_faults(hold_out(audit(data, **WORDS), "copy.jpg"), 512)
    assert found.of_kind("leak") == {"0.png": "like the held-out copy.jpg"}, "though it is the better one"
    assert fixes(found)[0] == "leave out 1 training image like a held-out one"
    assert "turned.png" in found.of_kind("near duplicate")


def test_of_held_out_copies_one_stays_and_neither_is_a_leak(data: Path) -> None:
    found = find_faults(hold_out(audit(data, **WORDS), "copy.jpg", "0.png"), 512)
    assert not found.of_kind("leak") and found.of_kind("near duplicate")["copy.jpg"] == "like 0.png"


def alike_but_for_bits(report: Audit, **fingerprints: int) -> Audit:
    """With these fingerprints, and no other difference but the size of the files: the first is the largest."""
    pictures = {}
    for number, (stem, bits) in enumerate(fingerprints.items()):
        name = f"{stem.removeprefix('_')}.png"
        looks = LOOKS.pack(bits, bytes(48), bytes(3), 0, 100, 0, 0, 0, 0, 0)
        pictures[name] = report.pictures[name]._replace(looks=looks, file_bytes=1000 - number)
    return replace(report, pictures=pictures)


CHAIN = {"_0": 0, "_1": 0xFF, "_2": 0xFFFF}
"""Neighbours are eight bits apart, the ends sixteen."""


def test_a_leak_is_found_by_way_of_any_held_out_copy(tmp_path: Path) -> None:
    """Of two held-out pictures that are alike, the second alone shows what is trained on."""
    report = alike_but_for_bits(hold_out(audit(scenes(tmp_path / "photos", 3), **WORDS), "0.png", "1.png"), **CHAIN)
    found = find_faults(report, 512, thresholds_of({"similar": 8}))
    assert found.of_kind("leak") == {"2.png": "like the held-out 1.png"}
    assert found.of_kind("near duplicate") == {"1.png": "like 0.png"}


def test_a_held_out_copy_is_never_like_one_that_is_trained_on(tmp_path: Path) -> None:
    report = alike_but_for_bits(hold_out(audit(scenes(tmp_path / "photos", 3), **WORDS), "1.png"), **CHAIN)
    found = find_faults(report, 512, thresholds_of({"similar": 8}))
    assert found.of_kind("leak") == {"0.png": "like the held-out 1.png", "2.png": "like the held-out 1.png"}
    assert not found.of_kind("near duplicate")


def test_of_equal_copies_the_captioned_one_stays_then_the_larger_file(tmp_path: Path) -> None:
    report = alike_but_for_bits(audit(scenes(tmp_path / "photos", 3), **WORDS), _2=0, _1=0, _0=0)
    assert set(find_faults(report, 512).of_kind("near duplicate").values()) == {"like 2.png"}
    used = [e._replace(origin="written" if e.name == "1.png" else "filename") for e in report.used]
    assert set(find_faults(replace(report, used=tuple(used)), 512).of_kind("near duplicate").values()) == {"like 1.png"}


def test_a_copy_without_a_border_stays_and_the_other_is_not_cropped_but_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    add(folder, "a.png", barred(scene(0), 24)), add(folder, "b.png", scene(0))
    found = find_faults(audit(folder, **WORDS), 512)
    assert found.of_kind("near duplicate") == {"a.png": "like b.png"} and found.of_kind("border")
    assert not found.cropped and fixes(found) == ["leave out 1 near-duplicate"]


def test_the_best_of_a_group_stays(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    best = scene(0, 240)
    (
        add(folder, "a.png", best.resize((120, 120))),
        add(folder, "b.png", best),
        add(folder, "c.jpg", best.resize((90, 90))),
    )
    add(folder, "blown.png", best.resize((64, 64)).resize((300, 300), Image.Resampling.BICUBIC))
    found = found_in(folder)[1].of_kind("near duplicate")
    assert set(found) == {"a.png", "c.jpg", "blown.png"} and set(found.values()) == {"like b.png"}


# --- all pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, said", [("product", "add photos taken elsewhere"), ("style", "right if you want it")])
def test_one_background_is_said_once(tmp_path: Path, kind, said: str) -> None:
    folder = scenes(tmp_path / "icons", 6, ground="#3cb4aa")
    report = audit(folder, trigger="sks", kind=kind)
    lines = findings_lines(find_faults(report, 64), report.card)
    assert len([line for line in lines if "background" in line]) == 1
    assert "all 6 images have one background (#3cb4aa)" in str(lines) and said in str(lines)
    add(folder, "z.png", scene(20)), add(folder, "y.png", scene(21))
    report = audit(folder, trigger="sks", kind=kind)
    assert find_faults(report, 64).background is None
    assert find_faults(report, 64, thresholds_of({"background": 0.7})).background


def test_two_pictures_or_two_colours_or_masks_are_no_one_background(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "icons", 3, ground="#3cb4aa")
    report = audit(folder, trigger="sks")
    assert find_faults(report, 64).background
    assert not find_faults(replace(report, used=report.used[:2]), 64).background, "two are chance"
    masked = [e._replace(mask=MaskFile(e.path, e.digest, e.size)) for e in report.used]
    assert not find_faults(replace(report, used=tuple(masked)), 64).background, "what is behind the masks is not learnt"
    for i in range(3):
        add(folder, f"red{i}.png", scene(30 + i, ground="red"))
    assert not find_faults(audit(folder, trigger="sks"), 64).background


def wood(seed: int, hue: tuple[int, int, int]) -> Image.Image:
    """Lighter and darker planks of a colour, seen at another place."""
    chance = random.Random(seed)
    image = Image.new("RGB", (160, 160))
    draw = ImageDraw.Draw(image)
    for number, top in enumerate(range(-chance.randrange(20), 160, 20)):
        light = (0.6, 1, 1.4)[number % 3] * chance.uniform(0.95, 1.05)
        draw.rectangle((0, top, 160, top + 19), fill=tuple(min(255, round(c * light)) for c in hue))
    image.paste(scene(seed, 80), (40, 40))
    return image


def test_one_patterned_background_is_said_from_five_pictures_on(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        add(folder, f"{i}.png", wood(i, (150, 110, 70)))
    report = audit(folder, **WORDS)
    found = find_faults(report, 64)
    assert found.background is not None and found.background.patterned and found.background[:2] == (5, 5)
    assert np.abs(np.subtract(found.background.colour, (150, 110, 70))).max() < 20
    assert "all 5 images have one background (patterned, #" in str(findings_lines(found, report.card))
    assert not find_faults(replace(report, used=report.used[:4]), 64).background, "four are chance"
    add(folder, "other.png", wood(9, (60, 90, 160)))
    report = audit(folder, **WORDS)
    assert not find_faults(report, 64).background
    assert find_faults(report, 64, thresholds_of({"background": 0.8})).background


def examples(tmp_path: Path, *captions: str):
    folder = scenes(tmp_path / "photos", len(captions))
    for i, caption in enumerate(captions):
        (folder / f"{i}.txt").write_text(caption)
    return audit(folder, **WORDS).used


def test_words_of_every_caption_are_named_but_not_those_that_say_nothing(tmp_path: Path) -> None:
    used = examples(tmp_path, "a red sks mug on a table", "a sks mug, Red, in a hand", "photo of a red sks mug")
    report = caption_report(used, CaptionWords("sks", "mug"), 1.0)
    assert report.fused == (("red", 3),) and report.captions == report.distinct == 3
    assert "every caption has 'red'" in caption_sentences(report, "sks")[0]


def test_words_of_most_captions_are_named_from_the_share_on_that_is_asked_for(tmp_path: Path) -> None:
    used = examples(tmp_path, "a red sks mug", "red sks mug here", "a blue sks mug", "a red sks mug indoors")
    assert not caption_report(used, CaptionWords("sks", "mug"), 1.0).fused
    report = caption_report(used, CaptionWords("sks", "mug"), 0.7)
    assert report.fused == (("red", 3),) and "3 of 4 captions have 'red'" in str(caption_sentences(report, "sks"))


def test_repeated_captions_are_counted_and_those_of_the_template_are_not(tmp_path: Path) -> None:
    used = examples(tmp_path, "a sks mug on oak", "a sks mug on oak", "a sks mug on felt", "a sks mug in snow")
    report = caption_report(used, CaptionWords("sks", "mug"), 1.0)
    assert report.repeated == (("a sks mug on oak", 2),) and report.repeating == 2
    assert "2 of 4 images share a caption" in str(caption_sentences(report, "sks"))
    template = [e._replace(origin="template") for e in used]
    assert caption_report(template, CaptionWords("sks", "mug"), 1.0) == (0, 0, (), ())


# --- thresholds -----------------------------------------------------------------------------------------------------


def test_thresholds_are_read_and_the_others_are_usual() -> None:
    assert read_thresholds(["similar=6", " cast = 1.5 "]) == USUAL_THRESHOLDS._replace(similar=6, cast=1.5)
    assert set(THRESHOLD_LIMITS) == set(USUAL_THRESHOLDS._fields)
    assert all(
        THRESHOLD_LIMITS[n].least <= v <= THRESHOLD_LIMITS[n].most for n, v in USUAL_THRESHOLDS._asdict().items()
    )


@pytest.mark.parametrize("wrong, said", [
    ("blur=2", "no `threshold` 'blur'"), ("similar", "must be a number"), ("similar=", "from 0 to 11"),
    ("similar=12", "from 0 to 11"), ("cast=nan", "from 0.1 to 4"), ("=3", "no `threshold` ''"), ("cast=x", "cast=x"),
])  # fmt: skip
def test_a_wrong_threshold_is_refused_with_what_it_may_be(wrong: str, said: str) -> None:
    with pytest.raises(InputError) as told:
        read_thresholds([wrong])
    assert said in told.value.problem and told.value.hint


def test_a_threshold_is_given_once() -> None:
    with pytest.raises(InputError, match="given twice"):
        read_thresholds(["cast=1", "cast=2"])


# --- repairs --------------------------------------------------------------------------------------------------------


def test_prepare_repairs_what_the_audit_named_and_says_what_it_cannot(data: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    report, found = found_in(data)
    out, said = tmp_path / "out", []
    work = preparing(data, out, **WORDS, fix=True, thresholds=thresholds_of(APART))
    try:
        while True:
            event = next(work)
            said += [event.text] if isinstance(event, Warned) else []
    except StopIteration as e:
        made = e.value
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before, "the source stays"
    assert list(made.card.rejected) == sorted(found.left_out)
    assert made.card.seen == report.seen == len(made.examples) + len(made.card.rejected)
    card = tomllib.loads((out / "dataset.toml").read_text())
    assert card["changes"] == {"near-duplicate left out": 2, "plain border cropped": 1}
    cropped = Image.open(out / "images" / "bars.png").convert("RGB")
    assert cropped.tobytes() == scene(7).tobytes()
    assert [text for text in said if "blurred" in text and "soft.png" in text] and len(said) == 2
    again = find_faults(audit(out), 512, thresholds_of(APART))
    assert not fixes(again) and list(unrepaired(again)) == ["blurred", "upscaled"]


def test_what_is_left_out_is_noted_as_what_it_was_and_as_nothing_else(data: Path) -> None:
    clear = scene(2).resize((100, 100)).convert("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 0))
    add(data, "clear.png", clear)
    report = hold_out(audit(data, **WORDS), "copy.jpg")
    assert any(note.file == "clear.png" for note in report.notes), "its transparency"
    made = repaired(report, find_faults(report, 512))
    notes = {note.file: note.text for note in made.notes if note.file in ("0.png", "clear.png", "turned.png")}
    assert notes == {
        "0.png": "training image like a held-out one left out", "clear.png": "near-duplicate left out",
        "turned.png": "near-duplicate left out",
    }  # fmt: skip
    assert sum(note.file == "clear.png" for note in made.notes) == 1


def test_what_is_cropped_has_its_new_size_before_it_is_written(data: Path) -> None:
    report, found = found_in(data)
    made = repaired(report, found)
    (bars,) = (e for e in made.used if e.name == "bars.png")
    assert bars.size == made.pictures["bars.png"].info.size == (160, 160)
    assert made.pictures["bars.png"].info.crop == found.cropped["bars.png"] == (0, 24, 160, 184)


def test_without_fix_nothing_is_repaired(data: Path, tmp_path: Path) -> None:
    made = prepare(data, tmp_path / "out", **WORDS)
    assert len(made.examples) == 9 and not made.card.rejected and not made.card.changes


def test_thresholds_decide_what_is_repaired(data: Path, tmp_path: Path) -> None:
    made = prepare(data, tmp_path / "out", **WORDS, fix=True, thresholds=thresholds_of({"border": 0.3, "similar": 10}))
    assert made.card.changes == {"near-duplicate left out": 2}


def test_a_border_stays_where_a_mask_would_no_longer_fit_or_too_little_were_left(data: Path) -> None:
    report = audit(data, **WORDS)
    masked = [e._replace(mask=MaskFile(e.path, e.digest, e.size)) for e in report.used]
    found = find_faults(replace(report, used=tuple(masked)), 512)
    assert not found.cropped and unrepaired(found)["border"] == ["bars.png"]
    assert "bars.png" not in str(fixes(found))
    add(data, "thin.png", barred(scene(9, 300).resize((300, 40)), 20))
    assert "thin.png" not in find_faults(audit(data, **WORDS), 512).cropped, "wider than four times its height"


def test_every_kind_has_its_words() -> None:
    from finetune.data.quality.advice import ADVICE, LABELS

    assert set(ADVICE) == set(LABELS) == set(FAULT_KINDS)
