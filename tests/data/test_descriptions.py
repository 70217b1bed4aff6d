"""What the file of a picture says of it becomes its caption where that is asked for, and is mentioned elsewhere."""

from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from support.nasty_folder import encoded, picture

from finetune.data.audit import audit
from finetune.data.prepare import prepare
from finetune.data.text.descriptions import description

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description><dc:title><rdf:Alt><rdf:li>shop</rdf:li></rdf:Alt>'
    '</dc:title><dc:description><rdf:Alt><rdf:li xml:lang="x-default">{}</rdf:li></rdf:Alt></dc:description>'
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
)


def exif(tag: int, value: object) -> bytes:
    made = Image.Exif()
    made[tag] = value
    return made.tobytes()


def user_comment(text: str) -> bytes:
    made = Image.Exif()
    made.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    return made.tobytes()


def png(**texts: str) -> dict[str, object]:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_itxt(key.replace("_", ":"), text)
    return {"pnginfo": info}


SAYING = {
    "exif": ("a.jpg", {"exif": exif(0x010E, "a mug on a table")}),
    "windows": ("a.jpg", {"exif": exif(0x9C9C, "a mug on a table".encode("utf-16-le") + b"\0\0")}),
    "comment": ("a.jpg", {"exif": user_comment("a mug on a table")}),
    "xmp": ("a.jpg", {"xmp": XMP.format("a mug on a table").encode()}),
    "png": ("a.png", png(Description="a mug on a table")),
    "xmp in png": ("a.png", png(**{"XML:com.adobe.xmp": XMP.format("a mug on a table")})),
    "web ui": ("a.png", png(parameters="a mug on a table\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a")),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAYING)
def test_every_place_for_a_description_is_read(kind: str, tmp_path: Path) -> None:
    name, options = SAYING[kind]
    (tmp_path / name).write_bytes(encoded(picture(1), "JPEG" if name.endswith("jpg") else "PNG", **options))
    assert description(tmp_path / name) == "a mug on a table"


@pytest.mark.parametrize(
    "options",
    [{}, {"exif": exif(0x010E, "OLYMPUS DIGITAL CAMERA         ")}, {"exif": exif(0x010E, "SONY DSC")},
     {"exif": exif(0x9286, b"{}")}, {"exif": exif(0x010E, "")}],
)  # fmt: skip
def test_what_cameras_write_into_every_picture_is_no_description(options: dict, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(picture(1), "JPEG", **options))
    assert description(tmp_path / "a.jpg") == ""


def test_a_file_that_is_no_picture_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    assert description(tmp_path / "a.jpg") == ""


def described(root: Path) -> Path:
    root.mkdir()
    for i in range(3):
        said = {"exif": exif(0x010E, f"a mug, view {i}")} if i else {}
        (root / f"{i}.jpg").write_bytes(encoded(picture(i), "JPEG", **said))
    return root


def test_descriptions_are_captions_where_they_are_asked_for(tmp_path: Path) -> None:
    root = described(tmp_path / "in")
    (root / "1.txt").write_text("a written mug")
    (root / "0.txt").write_text("another mug")
    made = prepare(root, tmp_path / "out", trigger="sks", class_word="mug", captions_from="description")
    assert [e.caption for e in made.examples] == ["another sks mug", "a written sks mug", "a sks mug, view 2"]
    assert made.card.captions == "sidecars and descriptions"
    (root / "0.txt").unlink()
    found = audit(root, trigger="sks", class_word="mug", captions_from="description")
    assert any("1 of 3 images have no caption: 0.jpg" in p for p in found.problems)


def test_descriptions_that_nobody_asked_for_are_mentioned(tmp_path: Path) -> None:
    root = described(tmp_path / "in")
    found = audit(root, trigger="sks", class_word="mug")
    assert {e.origin for e in found.used} == {"template"}
    assert "1.jpg: 'a mug, view 1'; set `captions_from` to description" in found.understood[0]
    assert not audit(root, trigger="sks", class_word="mug", captions_from="none").understood
