"""A product as its pictures lie around in a company: 300, in every convention and with every fault of the field.

    python benchmarks/untidy.py OUT [SCALE]    draws OUT/photos, OUT/captioned, ..., OUT/agency.zip; SCALE 0.1: a tenth

The product is the purple handbag of benchmarks/foreign.py, in views and on grounds of its own; no font is needed, and
the same pictures come out every time. docs/untidy.sh prepares, checks, captions, masks and trains them.
"""

import io
import json
import random
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageFilter, ImageOps

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "data"), str(ROOT / "benchmarks")]

import icons  # noqa: E402
from cup import View  # noqa: E402
from drawing import picture  # noqa: E402
from foreign import handbag  # noqa: E402

GROUNDS = ("white", "pink", "gray", "teal", "orange", "brown", "yellow", "blue")
AUTHORS = ("Ada Lovelace", "Studio Nord")


class Shot(NamedTuple):
    """A view of the product, and what a person would say of it."""

    view: View

    @property
    def image(self) -> Image.Image:
        return picture(icons.COLOURS[self.view.background], handbag(self.view))

    @property
    def mask(self) -> Image.Image:
        """White where the product is."""
        white = [mark._replace(colour=(255, 255, 255)) for mark in handbag(self.view)]
        return picture((0, 0, 0), white).convert("L")

    @property
    def caption(self) -> str:
        return f"handbag on a {self.view.background} background"


def shots() -> Iterator[Shot]:
    chance = random.Random("untidy")
    while True:
        yield Shot(
            View(
                chance.choice(GROUNDS), yaw=chance.uniform(-40, 40), pitch=chance.uniform(0.05, 0.4),
                roll=chance.uniform(-14, 14), size=chance.uniform(0.7, 1.1),
                centre=(chance.uniform(42, 58), chance.uniform(42, 58)),
            )
        )  # fmt: skip


def draw(out: Path, scale: float = 1.0) -> None:
    """All sources. scale: 1 draws 300 pictures, less draws fewer of each sort, one at least."""
    some = shots()

    def few(number: int) -> Iterator[tuple[int, Shot]]:
        return ((n, next(some)) for n in range(max(1, round(number * scale))))

    out.mkdir(parents=True)
    _kohya(out / "photos", few(20), few(40))
    _captioned(out / "captioned", few(60))
    _masked(out / "masked", few(30))
    _cut_out(out / "cutout", few(10))
    _listed(out / "listed", few(40))
    _split(out / "split", few(16), few(4))
    _archives(out, few(20), few(20))
    _parquet(out / "studio.parquet", few(30))
    _faulty(out / "faulty", [shot for _, shot in few(10)])


def _kohya(root: Path, often: Iterator[tuple[int, Shot]], seldom: Iterator[tuple[int, Shot]]) -> None:
    """Folders that say how often, and what, as kohya's trainer reads them. Photos as cameras and printers make them."""
    for name, some in (("10_sks handbag", often), ("2_sks handbag", seldom)):
        (root / name).mkdir(parents=True)
        for n, shot in some:
            image, file = shot.image, root / name / f"IMG_{2000 + n}.JPG"
            if n % 5 == 1:  # turned by its EXIF
                exif = Image.Exif()
                exif[0x0112] = 6
                image.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif, quality=93)
            elif n % 5 == 2:
                image.convert("CMYK").save(file, quality=95)
            elif n % 5 == 3:
                image.quantize(64).save(file.with_suffix(".png"))
            else:
                image.save(file, quality=93)
    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


def _captioned(root: Path, some: Iterator[tuple[int, Shot]]) -> None:
    """A caption beside each picture, in every way of calling that file."""
    root.mkdir()
    for n, shot in some:
        file = root / f"shot-{n:03}.png"
        shot.image.save(file)
        caption = f"a photo of [trigger] {shot.caption}" if n % 6 == 4 else f"a {shot.caption}"
        match n % 4:
            case 0:
                file.with_suffix(".txt").write_text(caption + "\n")
            case 1:
                file.with_suffix(".caption").write_text(caption)
            case 2:
                file.with_suffix(".json").write_text(json.dumps({"caption": caption}))
            case _:
                file.with_name(file.name + ".txt").write_text("﻿" + caption + "\r\n", encoding="utf-8")


def _masked(root: Path, some: Iterator[tuple[int, Shot]]) -> None:
    (root / "masks").mkdir(parents=True)
    for n, shot in some:
        file = root / f"{n:03}.png"
        shot.image.save(file)
        file.with_suffix(".txt").write_text(f"sks {shot.caption}")
        shot.mask.save(
            root / "masks" / file.name if n % 3 == 0 else file.with_stem(file.stem + ("-mask", "-masklabel")[n % 3 - 1])
        )


def _cut_out(root: Path, some: Iterator[tuple[int, Shot]]) -> None:
    """The product on transparency, as a shop has it."""
    root.mkdir()
    for n, shot in some:
        image = shot.image
        image.putalpha(shot.mask)
        image.save(root / f"handbag_cutout_{n}.png")


def _listed(root: Path, some: Iterator[tuple[int, Shot]]) -> None:
    """One table for all, as a German spreadsheet writes it, with its licences."""
    root.mkdir()
    lines = ["file_name;caption;license;author;source"]
    for n, shot in some:
        shot.image.save(root / f"{n}.webp", quality=90)
        author = AUTHORS[n % 2]
        lines.append(f"{n}.webp;sks {shot.caption};CC-BY-4.0;{author};https://example.org/{n}")
    (root / "metadata.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")


def _split(root: Path, train: Iterator[tuple[int, Shot]], validation: Iterator[tuple[int, Shot]]) -> None:
    for name, some in (("train", train), ("validation", validation)):
        (root / name).mkdir(parents=True)
        for n, shot in some:
            shot.image.save(root / name / f"{name}{n}.jpg", quality=93)
            (root / name / f"{name}{n}.txt").write_text(f"sks {shot.caption}\na {shot.caption}, sks")


def _archives(out: Path, zipped: Iterator[tuple[int, Shot]], tarred: Iterator[tuple[int, Shot]]) -> None:
    with zipfile.ZipFile(out / "agency.zip", "w") as archive:
        for n, shot in zipped:
            archive.writestr(f"delivery/{n}.png", _encoded(shot.image))
            archive.writestr(f"delivery/{n}.txt", f"sks {shot.caption}")
    with tarfile.open(out / "shard-000000.tar", "w") as archive:
        for n, shot in tarred:
            for suffix, content in ((".jpg", _encoded(shot.image, "JPEG")), (".txt", f"sks {shot.caption}".encode())):
                member = tarfile.TarInfo(f"{n:06}{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _parquet(file: Path, some: Iterator[tuple[int, Shot]]) -> None:
    """A table of the hub: pictures in it, and a column that says how good each is."""
    import datasets

    rows = [
        {"image": {"bytes": _encoded(shot.image), "path": f"{n}.png"}, "prompt": f"sks {shot.caption}",
         "aesthetic": 4.0 + n % 4, "license": "CC0-1.0"}
        for n, shot in some
    ]  # fmt: skip
    features = datasets.Features(
        image=datasets.Image(), prompt=datasets.Value("string"), aesthetic=datasets.Value("float32"),
        license=datasets.Value("string"),
    )  # fmt: skip
    datasets.Dataset.from_list(rows, features).to_parquet(file)


def _faulty(root: Path, some: list[Shot]) -> None:
    """What should not be trained on, or needs a word."""
    root.mkdir()
    first = some[0]
    made = {
        "sharp.jpg": first.image,
        "sharp again.jpg": first.image.resize((240, 240)).resize((256, 256)),
        "mirrored.jpg": ImageOps.mirror(first.image),
        "blurred.jpg": some[1 % len(some)].image.filter(ImageFilter.GaussianBlur(9)),
        "enlarged.jpg": some[2 % len(some)].image.resize((40, 40)).resize((256, 256), Image.Resampling.BICUBIC),
        "letterbox.jpg": ImageOps.expand(some[3 % len(some)].image.crop((0, 40, 256, 216)), (0, 40), "black"),
        "framed.jpg": ImageOps.expand(some[4 % len(some)].image.crop((30, 30, 226, 226)), 30, "white"),
        "cast.jpg": ImageOps.colorize(some[5 % len(some)].image.convert("L"), (0, 30, 0), (120, 255, 120)),
    }
    for name, image in made.items():
        image.save(root / name, quality=93)
    whole = _encoded(some[6 % len(some)].image, "JPEG")
    (root / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "empty.jpg").write_bytes(b"")
    (root / "download.jpg").write_bytes(b"<!DOCTYPE html><html><body>403 Forbidden</body></html>")
    frames = [some[n % len(some)].image for n in (7, 8, 9)]
    frames[0].save(root / "turntable.gif", save_all=True, append_images=frames[1:])


def _encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    draw(Path(sys.argv[1]), float([*sys.argv, "1"][2]))
