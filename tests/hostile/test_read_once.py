"""What is hashed is what is used: a file that is replaced between the two is refused, and nothing false is kept."""

import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.adapters import pocket_adapter
from support.bases import tiny_base
from support.hostile import attempt
from support.photos import photos

from finetune import families
from finetune.data import dataset
from finetune.data.audit import Audit
from finetune.data.example import Example
from finetune.data.images.buckets import Bucket
from finetune.data.prepare import prepare
from finetune.encoding.images import STRAIGHT, Wanted, encode_images
from finetune.encoding.store import Store, usage
from finetune.errors import BaseError, DataError
from finetune.evaluation.evaluate import real_pictures
from finetune.evaluation.gallery import PictureStore, content_id
from finetune.events import Event, unheard
from finetune.families.base import Family, Prompt
from finetune.files import layouts
from finetune.files.inspection import inspect
from finetune.proof.verify import verify
from finetune.resources import POCKET
from finetune.sampling.request import AdapterWeight, SessionOptions
from finetune.sampling.session import Session


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return families.load(str(tiny_base(tmp_path_factory.mktemp("base") / "a", "sd15", seed=0)))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos", ((80, 64), (64, 64)))


def wanted(data: Path) -> list[Wanted]:
    return [Wanted(e, Bucket(64, 64), STRAIGHT) for e in dataset.read_dataset(data, trigger="sks").examples]


def replace(file: Path) -> None:
    Image.new("RGB", (80, 64), (1, 2, 3)).save(file)


def test_a_picture_replaced_before_it_is_encoded_is_named_and_not_kept(
    data: Path, family: Family, tmp_path: Path
) -> None:
    store, want = Store(tmp_path / "cache"), wanted(data)
    original = (data / "1.png").read_bytes()
    replace(data / "1.png")
    with pytest.raises(DataError, match=r"1\.png: changed"):
        unheard(encode_images(store, family, want, torch.device("cpu")))
    assert usage(tmp_path / "cache").images == 1
    (data / "1.png").write_bytes(original)
    clean = unheard(encode_images(Store(tmp_path / "clean"), family, want, torch.device("cpu")))
    found = unheard(encode_images(store, family, want, torch.device("cpu")))
    assert all(torch.equal(found[key].mean, clean[key].mean) for key in clean)


def test_a_control_picture_and_a_judged_one_are_those_that_were_checked(data: Path) -> None:
    found = dataset.read_dataset(data, trigger="sks")
    first = found.examples[0]
    paired = Prompt("a cup", (Example(first.path, "control", "", first.digest, first.size),))
    assert len(paired.pixels()) == 1 and len(real_pictures(found)) == 2
    replace(first.path)
    with pytest.raises(DataError, match="changed"):
        paired.pixels()
    with pytest.raises(DataError, match="changed"):
        real_pictures(found)


@pytest.mark.parametrize("copied", [True, False], ids=["copied", "converted"])
def test_a_picture_replaced_while_a_dataset_is_prepared_writes_none(
    copied: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.data.sources import gather

    if not copied:
        Image.open(data / "1.png").convert("L").save(data / "1.png")
    audited = gather.auditing

    def changed_after(*arguments: object) -> Generator[Event, None, Audit]:
        found = yield from audited(*arguments)  # type: ignore[arg-type]
        replace(data / "1.png")
        return found

    monkeypatch.setattr(gather, "auditing", changed_after)
    with pytest.raises(DataError, match=r"1\.png: changed"):
        prepare(data, tmp_path / "out", trigger="sks")
    assert not (tmp_path / "out").exists()


PAIRS = {
    "BMP and TIFF": ("a.bmp", "b.tiff"),
    "BMP and PNG": ("a.png", "b.bmp"),
    "TIFF and PNG": ("a.tiff", "b.png"),
}


@pytest.mark.parametrize("first, second", PAIRS.values(), ids=list(PAIRS))
def test_what_prepare_writes_of_one_picture_in_two_formats_check_accepts(first: str, second: str, place: Path) -> None:
    folder = place / "twins"
    folder.mkdir()
    for name in (first, second):
        Image.open(place / "photos" / "photo 1.png").save(folder / name)
    Image.open(place / "photos" / "photo 2.png").save(folder / "other.bmp")
    words = ["--trigger", "sks", "--class-word", "mug"]
    found = attempt(["check", "twins", *words, "--json"], place)
    assert found.code == 2 and f"the same pixels as {first}" in found.out, found.text
    assert attempt(["prepare", "twins", "--out", "new", *words], place).code == 0
    again = attempt(["check", "new"], place)
    assert again.code == 0 and len(list((place / "new" / "images").iterdir())) == 2, again.text


def test_png_files_that_are_copied_need_only_differ_in_their_bytes(tmp_path: Path) -> None:
    """They stay two in a prepared dataset, which is read by its bytes."""
    picture = Image.effect_noise((64, 64), 60).convert("RGB")
    for n in (1, 9):
        picture.save(tmp_path / f"{n}.png", compress_level=n)
    assert (tmp_path / "1.png").read_bytes() != (tmp_path / "9.png").read_bytes()
    assert len(dataset.read_dataset(tmp_path, trigger="sks", class_word="mug").examples) == 2


LINKS = [
    "v2", "v2/image", "v2/text", "v2/image/0f", f"v2/image/0f/{'0f' * 32}.safetensors", "v3", "v3/image", "v3/text",
    f"v3/image/{'0f' * 8}.shard", f"v3/image/{'0f' * 8}.index",
]  # fmt: skip


@pytest.mark.parametrize("linked", LINKS)
def test_clearing_the_cache_follows_no_link_out_of_it(linked: str, place: Path) -> None:
    """Behind each link lies what looks just like the cache."""
    entry = f"v2/image/0f/{'0f' * 32}.safetensors"
    outside, cache = place / "outside", place / "cache"
    (outside / entry).parent.mkdir(parents=True)
    (outside / entry).write_bytes(b"somebody's")
    shutil.copytree(outside / "v2/image", outside / "v2/text")
    for kind in ("image", "text"):
        (outside / "v3" / kind).mkdir(parents=True)
        for suffix in ("shard", "index", "open"):
            (outside / "v3" / kind / f"{'0f' * 8}.{suffix}").write_bytes(bytes(96))
    (cache / "v2/text/1f").mkdir(parents=True)
    own = cache / "v2/text/1f" / f"{'1f' * 32}.safetensors"
    own.write_bytes(b"ours")
    if (cache / linked).exists():
        shutil.rmtree(cache / linked)
    (cache / linked).parent.mkdir(parents=True, exist_ok=True)
    if linked == "v2":
        own = cache / "v1/text/1f" / own.name
        own.parent.mkdir(parents=True)
        own.write_bytes(b"ours")
    os.symlink(outside / linked, cache / linked)
    before = sorted(path for path in outside.rglob("*"))
    found = attempt(["cache", "clear", "--root", "cache"], place)
    assert found.code == 0 and not found.traceback, found.text
    assert sorted(path for path in outside.rglob("*")) == before
    assert (cache / linked).is_symlink() and not own.exists()


def test_clearing_removes_no_empty_folder_that_is_not_the_caches(tmp_path: Path) -> None:
    from finetune.encoding.store import clear

    for name in ("vacation", "v2x/image/0f", "v2/image/photos", "v2/other"):
        (tmp_path / name).mkdir(parents=True)
    foreign = tmp_path / "v2/image/0f" / f"{'1f' * 32}.safetensors"  # lies where the cache puts no such entry
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    clear(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


# --- files that are too large to be held ------------------------------------------------------------------------------


def swapped(file: Path, by: Path) -> None:
    """Another file under the same name, of the same size."""
    shutil.copyfile(by, file.with_name("beside"))
    os.replace(file.with_name("beside"), file)


def test_a_base_that_is_replaced_between_two_parts_is_refused(tmp_path: Path) -> None:
    base, other = (tiny_base(tmp_path / name, "sd15", seed=n) for n, name in enumerate("ab"))
    family = families.load(str(base))
    family.parts.load("vae")
    family.parts.release("vae")
    assert family.parts["vae"] is family.parts["vae"]
    file = "unet/diffusion_pytorch_model.safetensors"
    swapped(base / file, other / file)
    with pytest.raises(BaseError, match="changed while it was in use"):
        family.parts.load("unet")
    assert families.load(str(base)).parts["unet"] is not None


def test_pictures_are_not_kept_under_the_name_of_another_adapter_or_base(tmp_path: Path) -> None:
    adapter, base = tmp_path / "a.safetensors", tmp_path / "base"
    for name in ("a", "b"):
        pocket_adapter(tmp_path / f"{name}.safetensors", ord(name))
    shutil.copytree(POCKET, base)
    store = PictureStore(tmp_path / "kept", str(base), SessionOptions())
    row = content_id(adapter)
    store.check(row, adapter)
    store.check(f"{row}@0.5", adapter)
    store.check("", None)
    swapped(adapter, tmp_path / "b.safetensors")
    with pytest.raises(BaseError, match=r"a\.safetensors was changed"):
        store.check(row, adapter)
    os.utime(base / "model_index.json", (1, 1))
    with pytest.raises(BaseError, match="base was changed"):
        store.check("", None)


def test_the_digest_in_a_picture_is_of_the_adapter_that_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        pocket_adapter(tmp_path / f"{name}.safetensors", ord(name))
    adapter = tmp_path / "a.safetensors"
    applied = Session.load_adapters

    def then_swapped(self: Session, *arguments: object) -> None:
        applied(self, *arguments)  # type: ignore[arg-type]
        swapped(adapter, tmp_path / "b.safetensors")

    assert "a.safetensors" in Session.open("pocket", ["x"], [AdapterWeight(adapter)]).made_with["adapters"]
    monkeypatch.setattr(Session, "load_adapters", then_swapped)
    with pytest.raises(BaseError, match=r"a\.safetensors was changed"):
        Session.open("pocket", ["x"], [AdapterWeight(adapter)])


@pytest.mark.parametrize("look", [inspect, lambda file: verify(file, "pocket")], ids=["inspect", "verify"])
def test_what_is_said_of_an_adapter_is_of_one_file(
    look: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        pocket_adapter(tmp_path / f"{name}.safetensors", ord(name))
    read = layouts.read_adapter

    def then_swapped(file: Path, *arguments: object) -> object:
        found = read(file, *arguments)  # type: ignore[arg-type]
        swapped(file, tmp_path / "b.safetensors")
        return found

    look(tmp_path / "a.safetensors")
    monkeypatch.setattr(layouts, "read_adapter", then_swapped)
    with pytest.raises(BaseError, match=r"a\.safetensors was changed"):
        look(tmp_path / "a.safetensors")
