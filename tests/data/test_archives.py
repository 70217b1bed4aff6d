"""Archives are read in bounds: nothing leads out of them, and what they lack or hide is told."""

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.sources import picture_bytes, prepared_from

from finetune.data.sources import archives, compressed
from finetune.data.sources.archives import Unpacked, unpacking
from finetune.errors import DataError, RunError
from finetune.events import unheard

PLAIN = {"sub/bell.png": picture_bytes(1), "cat.jpg": picture_bytes(2, "JPEG"), "cat.txt": b"a mug with a cat"}
ENDS = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"]
Entry = tuple[str, bytes, dict[str, object]]


def packed(path: Path, files: dict[str, bytes], more: Callable[[tarfile.TarFile], None] | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    ends = {".gz": "gz", ".tgz": "gz", ".bz2": "bz2", ".xz": "xz"}
    with tarfile.open(path, f"w:{ends.get(path.suffix, '')}") as archive:
        for name, content in files.items():
            added(archive, name, content)
        if more:
            more(archive)
    return path


def added(archive: tarfile.TarFile, name: str, content: bytes = b"", **told: object) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for key, value in told.items():
        setattr(entry, key, value)
    archive.addfile(entry, io.BytesIO(content))


def unpacked(path: Path) -> tuple[Unpacked, dict[str, bytes]]:
    folder = path.parent / "laid out"
    found = unheard(unpacking(path, folder))
    return found, {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("end", ENDS)
def test_an_archive_is_its_files(tmp_path, end):
    found, files = unpacked(packed(tmp_path / f"a{end}", PLAIN))
    assert files == PLAIN and found == Unpacked(3, ())


@pytest.mark.parametrize("end", [".zip", ".tar.gz"])
def test_a_dataset_is_prepared_from_an_archive_as_from_the_folder(tmp_path, end):
    made, _ = prepared_from(str(packed(tmp_path / f"a{end}", {**PLAIN, "bell.txt": b"x", "sub/bell.txt": b"a bell"})),
                            tmp_path / "made")  # fmt: skip
    assert {e.name: e.caption for e in made.examples} == {
        "images/cat.jpg": "a sks mug with a cat", "images/sub/bell.png": "sks, a bell"
    }  # fmt: skip
    assert (made.root / "images/cat.jpg").read_bytes() == PLAIN["cat.jpg"]
    assert [r.file for r in made.card.rejected] == ["bell.txt"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [], "nothing hidden is left"


@pytest.mark.parametrize("end", [".zip", ".tar"])
@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png", "C:\\evil.png", "..\\evil.png"])
def test_a_name_that_leads_out_is_rejected_and_nothing_is_written_there(tmp_path, end, name):
    inner = tmp_path / "deep" / "er"
    inner.mkdir(parents=True)
    found, files = unpacked(packed(inner / f"a{end}", {name: b"x", "cat.jpg": b"y"}))
    assert files == {"cat.jpg": b"y"} and [r.reason for r in found.rejected] == ["link"]
    assert not list(tmp_path.rglob("*evil*")) and not Path("/evil.png").exists()


def test_links_and_devices_are_rejected_and_not_followed(tmp_path):
    def more(archive: tarfile.TarFile) -> None:
        added(archive, "soft.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        added(archive, "hard.png", type=tarfile.LNKTYPE, linkname="cat.jpg")
        added(archive, "pipe.png", type=tarfile.FIFOTYPE)

    found, files = unpacked(packed(tmp_path / "a.tar", PLAIN, more))
    assert files == PLAIN
    assert [(r.file, r.reason) for r in found.rejected] == [
        ("soft.png", "link"), ("hard.png", "link"), ("pipe.png", "unreadable")
    ]  # fmt: skip


def test_a_link_or_a_pipe_in_a_zip_is_rejected(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("soft.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        pipe = zipfile.ZipInfo("pipe.png")
        pipe.create_system, pipe.external_attr = 3, (stat.S_IFIFO | 0o777) << 16
        archive.writestr(pipe, "x")
    found, files = unpacked(tmp_path / "a.zip")
    told = [(r.file, r.reason) for r in found.rejected]
    assert not files and told == [("soft.png", "link"), ("pipe.png", "unreadable")]


def test_two_files_of_one_name_are_told(tmp_path):
    def more(archive: tarfile.TarFile) -> None:
        added(archive, "./CAT.jpg", b"other")
        added(archive, "cat.jpg/inner.png", b"other")
        added(archive, "sub", b"other")

    found, files = unpacked(packed(tmp_path / "a.tar", PLAIN, more))
    assert files == PLAIN and [r.reason for r in found.rejected] == ["exact duplicate", "unreadable", "unreadable"]


@pytest.mark.parametrize("end", [".zip", ".tar.gz"])
def test_what_really_comes_out_is_counted_and_a_bomb_is_refused(tmp_path, end, monkeypatch):
    monkeypatch.setattr(archives, "FREE_BYTES", 1 << 20)
    bomb = packed(tmp_path / f"a{end}", {"big.png": bytes(40 << 20)})
    assert bomb.stat().st_size < 200_000
    with pytest.raises(DataError, match="unpacks to more than 100 times its size") as refused:
        unpacked(bomb)
    assert "unpack it yourself" in refused.value.hint


@pytest.mark.parametrize("end", [".zip", ".tar"])
def test_many_empty_files_are_counted_too(tmp_path, end, monkeypatch):
    monkeypatch.setattr(archives, "FREE_BYTES", 512 * 60)
    monkeypatch.setattr(archives, "PER_BYTE", 0)
    unpacked(packed(tmp_path / "few" / f"a{end}", {f"{n}.png": b"" for n in range(20)}))
    with pytest.raises(DataError, match=r"\(at 60.png\)"):
        unpacked(packed(tmp_path / "many" / f"a{end}", {f"{n}.png": b"" for n in range(61)}))


def test_a_size_that_the_header_understates_is_not_believed(tmp_path):
    whole = packed(tmp_path / "a.zip", {"big.png": bytes(5000)}).read_bytes()
    (tmp_path / "a.zip").write_bytes(whole.replace((5000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    found, files = unpacked(tmp_path / "a.zip")
    assert len(files.get("big.png", b"")) <= 10 and (files or found.rejected)


@pytest.mark.parametrize("end", [".zip", ".tar"])
def test_a_file_larger_than_a_picture_may_be_is_rejected_alone(tmp_path, end, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 3000)
    found, files = unpacked(packed(tmp_path / f"a{end}", {"big.png": bytes(3001), "small.png": bytes(3000)}))
    assert list(files) == ["small.png"] and [(r.file, r.reason) for r in found.rejected] == [("big.png", "image bomb")]


def test_a_header_of_many_megabytes_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "HEADER_BYTES", 4096)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        added(archive, "a.png", b"x", pax_headers={"comment": "x" * 100_000})
    with pytest.raises(DataError, match="a header has more than"):
        unpacked(tmp_path / "a.tar.gz")


def test_a_file_larger_than_a_header_may_be_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "HEADER_BYTES", 4096)
    files = {"big.png": bytes(20_000), "small.png": b"x"}
    assert unpacked(packed(tmp_path / "a.tar.gz", files)) == (Unpacked(2, ()), files)


def test_an_encrypted_zip_is_refused_with_what_to_do(tmp_path):
    whole = bytearray(packed(tmp_path / "a.zip", {"cat.png": b"x" * 50}).read_bytes())
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        whole[whole.find(magic) + flags] |= 1
    (tmp_path / "a.zip").write_bytes(whole)
    with pytest.raises(DataError, match=r"is encrypted \(cat.png\)") as refused:
        unpacked(tmp_path / "a.zip")
    assert "password" in refused.value.hint


@pytest.mark.parametrize("end", ENDS)
def test_an_archive_that_is_cut_off_anywhere_is_refused(tmp_path, end):
    """`tarfile` takes most of these for a shorter archive."""
    whole = packed(tmp_path / f"whole{end}", PLAIN).read_bytes()
    length = whole.rstrip(b"\0").__len__() if end == ".tar" else len(whole) - 8
    for number, cut in enumerate(sorted({*range(1, length, max(1, length // 25)), length - 1})):
        part = tmp_path / f"{number}" / f"a{end}"
        part.parent.mkdir()
        part.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cut off|empty or not a tar") as refused:
            unpacked(part)
        assert refused.value.hint == "copy or download it again"


def test_where_a_tar_is_cut_off_is_told(tmp_path):
    whole = packed(tmp_path / "a.tar", {"one.png": b"x" * 600, "two.png": b"y" * 600}).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: 512 + 1024])
    with pytest.raises(DataError, match=r"after one.png, file 1"):
        unpacked(tmp_path / "a.tar")


def test_a_damaged_file_in_a_zip_is_rejected_and_the_others_stay(tmp_path):
    whole = bytearray(packed(tmp_path / "a.zip", PLAIN).read_bytes())
    whole[whole.find(PLAIN["cat.jpg"][:40][:1]) : 0] = b""
    at = whole.find(b"cat.jpg") + len("cat.jpg") + 300
    whole[at : at + 4] = b"\xff\xff\xff\xff" if whole[at : at + 4] != b"\xff\xff\xff\xff" else b"\0\0\0\0"
    (tmp_path / "a.zip").write_bytes(whole)
    found, files = unpacked(tmp_path / "a.zip")
    assert [(r.file, r.reason) for r in found.rejected] == [("cat.jpg", "corrupt")]
    assert files == {name: content for name, content in PLAIN.items() if name != "cat.jpg"}


def test_an_archive_in_an_archive_is_not_followed(tmp_path):
    inner = packed(tmp_path / "inner.zip", {"x.png": picture_bytes(9)}).read_bytes()
    made, _ = prepared_from(str(packed(tmp_path / "a.zip", {**PLAIN, "inner.zip": inner, "sub/bell.txt": b"b"})),
                            tmp_path / "made")  # fmt: skip
    assert [(r.file, r.reason) for r in made.card.rejected] == [("inner.zip", "unsupported type")]
    assert "unpack a.zip, and give this as a source" in made.card.rejected[0].detail


@pytest.mark.parametrize("content", [b"", b"hello" * 400, b"PK\x03\x04" + b"x" * 300, b"\x1f\x8b" + b"x" * 300])
@pytest.mark.parametrize("end", [".zip", ".tar", ".tar.gz"])
def test_what_is_no_archive_is_refused(tmp_path, content, end):
    (tmp_path / f"a{end}").write_bytes(content)
    with pytest.raises((DataError, RunError), match=f"a{end}"):
        unpacked(tmp_path / f"a{end}")


def test_zstd_is_named_where_python_lacks_it(tmp_path, monkeypatch):
    (tmp_path / "a.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(compressed.importlib, "import_module", missing)
    with pytest.raises(DataError, match="compressed with zstd"):
        unpacked(tmp_path / "a.tar.zst")
