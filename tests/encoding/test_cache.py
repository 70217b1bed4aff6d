"""The cache: what misses and what does not, what damage does, who else may write, what clearing removes."""

import hashlib
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.bases import tiny_base
from support.photos import photos
from support.runs import short
from torch import Tensor
from torch.testing import assert_close
from typer.testing import CliRunner

from finetune import families
from finetune import tensors as weights
from finetune.cli import app
from finetune.data import dataset
from finetune.data.images import decode
from finetune.data.images.buckets import Bucket, fit, to_array
from finetune.encoding.images import CENTER, PLACES, STRAIGHT, Crop, Wanted, encode_images
from finetune.encoding.store import Store, clear, usage
from finetune.encoding.stored import Stored
from finetune.encoding.text import Captions, encode_texts
from finetune.errors import DataError, RunError
from finetune.events import unheard
from finetune.families.base import Family, Moments, components, read
from finetune.planning import plan as planning
from finetune.planning.schedule import Micro, Visit
from finetune.training import batches, look

CPU = torch.device("cpu")
SQUARE, WIDE = Bucket(64, 64), Bucket(96, 48)
EVERY_CROP = [Crop(place, flip) for place in range(len(PLACES)) for flip in (False, True)]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return families.load(str(tiny_base(tmp_path_factory.mktemp("base") / "a", "sd15", seed=0)))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos", ((80, 64), (64, 64)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def wanted(data: Path, crop: Crop = STRAIGHT, bucket: Bucket = SQUARE) -> list[Wanted]:
    return [Wanted(e, bucket, crop) for e in dataset.read_dataset(data, trigger="sks").examples]


def misses(store: Store, family: Family, want: Sequence[Wanted] = (), captions: Sequence[str] = ()) -> int:
    """How many of these had to be encoded."""
    before = store.misses
    unheard(encode_images(store, family, want, CPU))
    unheard(encode_texts(store, family, "text_encoder", captions))
    return store.misses - before


def files(store: Store) -> list[Path]:
    return sorted(path for path in store.root.rglob("*") if path.is_file())


def key(n: int) -> bytes:
    return hashlib.sha256(bytes([n])).digest()


def nudge(module: torch.nn.Module) -> Iterator[None]:
    """One weight is another inside."""
    weight = next(module.parameters()).data.view(-1)
    before = weight[0].clone()
    weight[0] += 0.5
    yield
    weight[0] = before


# --- the key --------------------------------------------------------------------------------------------------------


def test_what_was_encoded_is_found_again(store: Store, family: Family, data: Path) -> None:
    assert misses(store, family, wanted(data), ["a cup", ""]) == 4
    assert misses(store, family, wanted(data), ["a cup", ""]) == 0
    assert misses(Store(store.root.parent), family, wanted(data), ["a cup", ""]) == 0
    assert store.hits == 4


def test_a_changed_picture_misses_alone(store: Store, family: Family, data: Path) -> None:
    misses(store, family, wanted(data))
    with Image.open(data / "0.png") as image:
        changed = image.convert("RGB")
    red, green, blue = changed.getpixel((3, 3))
    changed.putpixel((3, 3), (red ^ 1, green, blue))
    changed.save(data / "0.png")
    assert misses(store, family, wanted(data)) == 1


def test_another_name_or_time_or_place_of_the_same_picture_does_not_miss(
    store: Store, family: Family, data: Path
) -> None:
    misses(store, family, wanted(data))
    os.utime(data / "0.png", (1, 1))
    (data / "1.png").rename(data / "renamed.png")
    (data / "1.txt").rename(data / "renamed.txt")
    moved = data.rename(data.with_name("moved"))
    assert misses(store, family, wanted(moved)) == 0


@pytest.mark.parametrize(
    "again", [{"bucket": WIDE}, {"crop": Crop(0, False)}, {"crop": Crop(CENTER, True)}], ids=["bucket", "place", "flip"]
)
def test_another_transform_misses(store: Store, family: Family, data: Path, again: dict[str, object]) -> None:
    misses(store, family, wanted(data))
    assert misses(store, family, wanted(data, **again)) == 2  # type: ignore[arg-type]
    assert misses(store, family, wanted(data)) == 0


def test_another_autoencoder_misses_for_images_alone(store: Store, family: Family, data: Path) -> None:
    misses(store, family, wanted(data), ["a cup"])
    for _ in nudge(family.parts["vae"]):  # type: ignore[attr-defined]
        assert misses(store, family, captions=["a cup"]) == 0
        assert misses(store, family, wanted(data)) == 2
    assert misses(store, family, wanted(data)) == 0


def test_another_text_encoder_misses_for_captions_alone(store: Store, family: Family, data: Path) -> None:
    misses(store, family, wanted(data), ["a cup"])
    for _ in nudge(components(family)["text_encoder"]):
        assert misses(store, family, wanted(data)) == 0
        assert misses(store, family, captions=["a cup"]) == 1
    assert misses(store, family, captions=["a cup", "a cup "]) == 1


def test_another_denoiser_does_not_miss(store: Store, family: Family, data: Path) -> None:
    misses(store, family, wanted(data), ["a cup"])
    for _ in nudge(components(family)["unet"]):
        assert misses(store, family, wanted(data), ["a cup"]) == 0


# --- the value ------------------------------------------------------------------------------------------------------


def test_found_and_fresh_are_the_same_bits(store: Store, family: Family, data: Path) -> None:
    for _ in ("fresh", "found"):
        moments = unheard(encode_images(store, family, wanted(data), CPU))
        text = unheard(encode_texts(store, family, "text_encoder", ["a cup"]))["a cup"]
        for want in wanted(data):
            image = fit(decode.open_rgb(want.example.path), SQUARE, PLACES[CENTER], False)
            own = family.encode_images(torch.from_numpy(to_array(image)).unsqueeze(0))
            assert torch.equal(moments[want.example.name, STRAIGHT].mean, own.mean[0])
            assert torch.equal(moments[want.example.name, STRAIGHT].logvar, own.logvar[0])
        with torch.no_grad():
            assert torch.equal(text.tokens, read(family, ["a cup"]).tokens[0])


def test_only_the_last_entries_are_held_and_what_is_read_again_is_the_same_bits(
    store: Store, family: Family, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = [*wanted(data), *wanted(data, Crop(0, False)), *wanted(data, Crop(4, True))]
    everything = dict(unheard(encode_images(store, family, crops, CPU)))
    one = sum(tensor.nbytes for tensor in next(iter(everything.values())))
    monkeypatch.setattr("finetune.encoding.sizes.HELD_BYTES", 2 * one)
    found = unheard(encode_images(store, family, crops, CPU))
    assert isinstance(found, Stored) and len(found) == len(crops) == len(everything) > 3
    assert not found.held, "a start reads nothing"
    counted = store.hits, store.misses
    for _ in range(2):
        for n, (name, moments) in enumerate(everything.items(), 1):
            assert all(torch.equal(a, b) for a, b in zip(moments, found[name], strict=True))
            assert len(found.held) == (2 if len(found.held) > 1 else n) and found.bytes <= 2 * one
    assert (store.hits, store.misses) == counted


def stored(store: Store, names: str) -> Stored[str, float]:
    for n, name in enumerate(names):
        store.put("image", key(ord(name)), {"x": torch.tensor(float(n))})
    entries = store.entries("image", [key(ord(name)) for name in names])
    return Stored(entries, dict(zip(names, entries.numbers, strict=True)), lambda entry: entry["x"].item())


@pytest.mark.parametrize("limit", ["HELD_BYTES", "HELD_ENTRIES"])
def test_what_was_asked_for_last_is_held_and_not_read_again(
    limit: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"finetune.encoding.sizes.{limit}", {"HELD_BYTES": 8, "HELD_ENTRIES": 2}[limit])
    made = stored(store, "abc")
    assert list(made) == ["a", "b", "c"] and [made[name] for name in "abc"] == [0, 1, 2]
    assert made["b"] == 1 and made["a"] == 0, "c was asked for longest ago"
    for entry in files(store):
        entry.unlink()
    assert made["b"] == 1 and made["a"] == 0
    with pytest.raises(RunError, match="has gone from the cache") as e:
        made["c"]
    assert "resume" in e.value.hint


def test_an_entry_larger_than_what_may_be_held_is_held_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.encoding.sizes.HELD_BYTES", 1)
    made = stored(store, "ab")
    assert [made["a"], made["b"]] == [0, 1] and list(made.held) == [made.numbers["b"]]


def test_latents_that_are_not_finite_name_the_picture_and_are_not_kept(
    store: Store, family: Family, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = iter([1.0, float("nan")])

    def encode(pixels: Tensor) -> Moments:
        return Moments(torch.full((1, 4, 8, 8), next(bad)), torch.zeros(1, 4, 8, 8))

    monkeypatch.setattr(family, "encode_images", encode)
    with pytest.raises(DataError, match=r"^1\.png: .*not finite"):
        misses(store, family, wanted(data))
    assert usage(store.root.parent).images == 1


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [True, False])
def test_an_entry_with_any_one_byte_changed_is_no_entry(sealed: bool, store: Store) -> None:
    tensors = {"mean": torch.randn(2, 3), "logvar": torch.randn(2, 3)}
    store.put("image", key(7), tensors)
    if sealed:
        store.seal("image")
    for file in files(store):
        whole = file.read_bytes()
        for at in range(len(whole)):
            for flip in (1, 0x20):
                content = bytearray(whole)
                content[at] ^= flip
                file.write_bytes(content)
                assert Store(store.root.parent).read("image", key(7)) is None, (file, at)
        file.write_bytes(whole)
        assert Store(store.root.parent).read("image", key(7)) is not None


@pytest.mark.parametrize("length", [0, 4, 60, -1])
@pytest.mark.parametrize("suffix", ["shard", "index"])
def test_an_entry_cut_short_is_made_again(store: Store, family: Family, data: Path, length: int, suffix: str) -> None:
    misses(store, family, wanted(data), ["a cup"])
    for file in store.root.rglob(f"*.{suffix}"):
        file.write_bytes(file.read_bytes()[:length])
    lost = {("shard", -1): 2, ("index", -1): 2, ("index", 60): 1}.get((suffix, length), 3)
    assert misses(Store(store.root.parent), family, wanted(data), ["a cup"]) == lost
    assert misses(Store(store.root.parent), family, wanted(data), ["a cup"]) == 0


def test_a_cache_that_cannot_be_written_says_where_and_what_to_do(family: Family, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write into the cache .*file") as refused:
        misses(Store(tmp_path / "file"), family, wanted(data))
    assert "FINETUNE_CACHE" in refused.value.hint


# --- others ---------------------------------------------------------------------------------------------------------


def write_many(root: Path, seed: int, beginning: "threading.Barrier | None" = None) -> None:
    store = Store(root)
    if beginning:
        beginning.wait()
    for n in range(40):
        store.put("image", key(n), {"mean": torch.full((4, 32, 32), float(n))})
    if seed:
        store.seal("image")


def assert_all_whole(root: Path, writers: int) -> None:
    store = Store(root)
    for n in range(40):
        found = store.read("image", key(n))
        assert found is not None
        assert torch.equal(found["mean"], torch.full((4, 32, 32), float(n)))
    assert len(files(store)) == 2 * writers, "each has its own"


def test_two_threads_may_fill_one_cache(tmp_path: Path) -> None:
    beginning = threading.Barrier(3)
    failed: list[threading.ExceptHookArgs] = []
    threading.excepthook, kept = failed.append, threading.excepthook
    threads = [threading.Thread(target=write_many, args=(tmp_path, i, beginning)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threading.excepthook = kept
    assert not failed
    assert_all_whole(tmp_path, 3)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_two_processes_may_fill_one_cache(tmp_path: Path) -> None:
    """Also of two machines, whose processes may have the same number."""
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write_many, args=(tmp_path, i)) for i in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert_all_whole(tmp_path, 2)


# --- info and clear -------------------------------------------------------------------------------------------------


def test_info_counts_and_clear_removes_that_and_nothing_else(
    store: Store, family: Family, data: Path, tmp_path: Path
) -> None:
    misses(store, family, wanted(data), ["a cup", "a jug", ""])
    root = tmp_path / "cache"
    places = ("videos/mine.mp4", "venv/image/it/logo.safetensors", "inductor/k", "v1/notes.txt", "notes.txt")
    foreign = [root / place for place in places]
    for file in foreign:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    link = root / "vlink"
    link.symlink_to(data, target_is_directory=True)
    old = root / "v2/text/1f" / f"{'1f' * 32}.safetensors"  # of the format before
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    size = 3 + sum(file.stat().st_size for file in files(store))
    assert usage(root) == (root, 2, 4, size)
    said = CliRunner().invoke(app, ["cache", "info", "--root", str(root)])
    assert said.exit_code == 0 and "2 images, 4 captions" in said.output
    old.with_name(f".{'1f' * 32}.safetensors.77-ab.part").write_text("left by a kill")
    (store.root / "image" / f"{'0f' * 8}.shard").write_text("left by a kill")
    foreign.append(store.root / "image" / "notes.shard")
    foreign[-1].write_text("mine")
    assert CliRunner().invoke(app, ["cache", "clear", "--root", str(root)]).exit_code == 0
    assert sorted(p for p in root.rglob("*") if p.is_file()) == sorted(foreign)
    assert sorted(p.name for p in data.iterdir()) == ["0.png", "0.txt", "1.png", "1.txt"]
    assert usage(root) == (root, 0, 0, 0)


def test_clearing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    clear(tmp_path / "none")
    assert usage(tmp_path / "none").bytes == 0


# --- what training makes of it --------------------------------------------------------------------------------------


@pytest.fixture
def made(data: Path, family: Family, store: Store) -> batches.Batches:
    loaded = short(data, family.base, data__resolution=64, data__crop="random", data__flip=True, train__steps=800)
    plan = planning.resolve_plan(loaded)
    latents = unheard(encode_images(store, family, look.wanted(plan), CPU))
    texts = unheard(encode_texts(store, family, "text_encoder", look.prompts(plan)))
    return batches.Batches(plan, family, latents, Captions(family, {"text_encoder": texts}, CPU))


def test_each_visit_draws_afresh_from_the_distribution(made: batches.Batches) -> None:
    """Two visits differ; over many visits mean and spread tend to what is cached."""
    spread = {key: Moments(m.mean, torch.full_like(m.logvar, -2.0)) for key, m in made.latents.items()}
    one = {key: Moments(torch.ones_like(m.mean), m.logvar) for key, m in spread.items()}
    visits = batches.Batches(made.plan, made.family, one, made.texts)
    seen = torch.stack([visits.train(Micro(0, (Visit(0, visit),))).latents[0] for visit in range(400)])
    assert not torch.equal(seen[0], seen[1])
    scale = made.family.latents(Moments(torch.ones(1), torch.zeros(1)), torch.zeros(1)).item()
    sigma = torch.tensor(-1.0).exp().item()
    assert_close(seen.mean(0), torch.full_like(seen[0], scale), rtol=0, atol=5 * scale * sigma / 20)
    assert_close(seen.std().item(), scale * sigma, rtol=0.02, atol=0)


def test_crops_and_flips_are_drawn_at_each_visit(made: batches.Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    """T25: neither is frozen into the cache; every one that may be drawn is there."""
    marked = {key: Moments(torch.full_like(m.mean, float(i)), torch.full_like(m.logvar, -80.0))
              for i, (key, m) in enumerate(made.latents.items())}  # fmt: skip
    keys = list(marked)
    visits = batches.Batches(made.plan, made.family, marked, made.texts)
    scale = made.family.latents(Moments(torch.ones(1), torch.zeros(1)), torch.zeros(1)).item()
    name = made.plan.train.placed[0].example.name
    drawn = [keys[round(visits.train(Micro(0, (Visit(0, v),))).latents.mean().item() / scale)] for v in range(100)]
    assert {n for n, _ in drawn} == {name}
    assert {crop for _, crop in drawn} == set(EVERY_CROP)
    assert len({crop for _, crop in drawn[:6]}) > 1


def test_every_random_crop_shows_other_pixels(store: Store, family: Family, data: Path) -> None:
    """The 80 x 64 picture has five windows of 64 x 64, and their mirror images."""
    found = unheard(encode_images(store, family, [w for c in EVERY_CROP for w in wanted(data, c)[:1]], CPU))
    assert len({weights.fingerprint({"mean": m.mean}) for m in found.values()}) == 2 * len(PLACES)
