"""Pictures are decoded in threads and encoded in batches, captions too: what comes of it, and is kept on the way."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from support.bases import tiny_base
from support.photos import photos
from torch import Tensor
from torch.testing import assert_close

from finetune import families
from finetune.data import dataset
from finetune.data.example import Example
from finetune.data.images.buckets import Bucket
from finetune.data.images.workers import in_batches
from finetune.encoding import images, text
from finetune.encoding.images import STRAIGHT, Crop, ImageKeys, Wanted, encode_images
from finetune.encoding.missing import Fewer
from finetune.encoding.shards import Shards
from finetune.encoding.store import Store, entry_key, usage
from finetune.encoding.text import encode_texts
from finetune.errors import DataError
from finetune.events import unheard
from finetune.families.base import Family

CPU = torch.device("cpu")
SQUARE, WIDE = Bucket(64, 64), Bucket(96, 48)
CAPTIONS = ["a cup", "", "a red cup on a table", "two cups"]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return families.load(str(tiny_base(tmp_path_factory.mktemp("base") / "a", "sd15", seed=0)))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos", ((80, 64), (64, 64), (64, 80), (72, 64), (64, 72)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def calls(family: Family, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of the autoencoder was given."""
    encode, seen = family.encode_images, list[int]()

    def counted(pixels: Tensor) -> object:
        seen.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(family, "encode_images", counted)
    return seen


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """On the CPU, too."""

    def of(count: int) -> None:
        monkeypatch.setitem(images.ENCODED_PX, "cpu", count * 64 * 64)
        monkeypatch.setitem(text.TOGETHER, "cpu", count)

    return of


def wanted(data: Path, crop: Crop = STRAIGHT, bucket: Bucket = SQUARE) -> list[Wanted]:
    return [Wanted(e, bucket, crop) for e in dataset.read_dataset(data, trigger="sks").examples]


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_of_one_bucket_and_of_so_many_pixels(data: Path) -> None:
    pairs = [(n, Wanted(w.example, WIDE if n % 3 == 1 else SQUARE, w.crop)) for n, w in enumerate(wanted(data) * 2)]
    batches = list(images._batched(pairs, 3 * 64 * 64))
    assert [[n for n, _ in batch] for batch in batches] == [[0, 2, 3], [1, 4], [5, 6, 8], [7], [9]]
    for batch in batches:
        assert len({want.bucket for _, want in batch}) == 1
        assert sum(want.bucket.width * want.bucket.height for _, want in batch) <= 3 * 64 * 64
    assert [len(batch) for batch in images._batched(pairs, 0)] == [1] * 10
    assert [batch[0][0] for batch in images._batched(pairs, 0)] == list(range(10)), "in order"


def test_pictures_of_a_batch_are_encoded_together_and_are_what_they_are_alone(
    store: Store, family: Family, data: Path, calls: list[int], together: Callable[[int], None], tmp_path: Path
) -> None:
    alone = unheard(encode_images(Store(tmp_path / "alone"), family, wanted(data), CPU))
    assert calls == [1] * 5, "on a CPU"
    together(2)
    batched = unheard(encode_images(store, family, wanted(data), CPU))
    assert calls[5:] == [2, 2, 1] and store.misses == 5
    for name, moments in alone.items():
        for one, other in zip(moments, batched[name], strict=True):
            assert_close(other, one, rtol=1e-4, atol=1e-5)
    again = unheard(encode_images(store, family, wanted(data), CPU))
    assert len(calls) == 8 and all(torch.equal(batched[name].mean, again[name].mean) for name in alone)


def test_captions_of_a_batch_are_what_they_are_alone(
    store: Store, family: Family, together: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = unheard(encode_texts(Store(tmp_path / "alone"), family, "text_encoder", CAPTIONS))
    encode, calls = family.encode, list[int]()
    monkeypatch.setattr(family, "encode", lambda e, prompts: (calls.append(len(prompts)), encode(e, prompts))[1])
    together(3)
    batched = unheard(encode_texts(store, family, "text_encoder", CAPTIONS))
    assert calls == [3, 1] and alone.keys() == batched.keys() == set(CAPTIONS)
    for caption in CAPTIONS:
        assert_close(batched[caption].tokens, alone[caption].tokens, rtol=1e-4, atol=1e-5)


def test_captions_of_any_length_keep_their_own(together: Callable[[int], None], tmp_path: Path) -> None:
    """A batch fills the shorter ones up."""
    family = families.load(str(tiny_base(tmp_path / "base", "zimage")))
    alone = unheard(encode_texts(Store(tmp_path / "alone"), family, "text_encoder", CAPTIONS))
    together(4)
    batched = unheard(encode_texts(Store(tmp_path / "cache"), family, "text_encoder", CAPTIONS))
    assert len({text.tokens.shape for text in alone.values()}) > 1
    for caption in CAPTIONS:
        assert batched[caption].tokens.shape == alone[caption].tokens.shape
        assert_close(batched[caption].tokens, alone[caption].tokens, rtol=1e-3, atol=1e-4)


class Short:
    """Memory for so many at once."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error, self.calls = room, error, list[int]()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.calls.append(len(items))
        if len(items) > self.room:
            raise self.error
        return [10 * item for item in items]


def test_fewer_are_encoded_at_once_where_memory_is_short_and_from_then_on() -> None:
    short = Short(3, RuntimeError("CUDA out of memory"))
    encode = Fewer[int, int](short)
    assert list(encode(range(8))) == [10 * n for n in range(8)] and short.calls == [8, 4, 2, 2, 2, 2]
    assert list(encode(range(4))) == [0, 10, 20, 30] and short.calls[6:] == [2, 2]


@pytest.mark.parametrize(
    "room, error", [(0, MemoryError()), (0, RuntimeError("out of memory")), (3, RuntimeError("x"))]
)
def test_what_one_alone_has_no_memory_for_and_every_other_fault_is_raised(room: int, error: Exception) -> None:
    with pytest.raises(type(error)):
        list(Fewer[int, int](Short(room, error))(range(8)))


# --- threads ----------------------------------------------------------------------------------------------------------


def test_the_next_pictures_are_decoded_meanwhile_and_not_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.data.images.workers.worker_count", lambda: 2)
    drawn = list[int]()

    def batches() -> Iterator[list[int]]:
        for n in range(50):
            drawn.append(n)
            yield [n]

    with closing(in_batches(batches(), lambda n: threading.current_thread().name)) as ahead:
        first = next(ahead)
        assert first[0][0] == 0 and first[0][1]() != threading.main_thread().name
        assert drawn == [0, 1, 2, 3, 4], "two a thread"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_picture_that_cannot_be_decoded_is_an_error_of_its_own() -> None:
    def decode(n: int) -> int:
        if n == 1:
            raise DataError("1.png: changed", "")
        return n

    (batch,) = in_batches([[0, 1, 2]], decode)
    results: list[Callable[[], int]] = [made for _, made in batch]
    assert results[0]() == 0 and results[2]() == 2
    with pytest.raises(DataError, match="changed"):
        results[1]()


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_of_a_batch_the_pictures_before_a_bad_one_are_kept(
    store: Store, family: Family, data: Path, calls: list[int], together: Callable[[int], None]
) -> None:
    together(5)
    wants = wanted(data)
    wants[2] = wants[2]._replace(example=wants[2].example._replace(digest="0" * 64))
    with pytest.raises(DataError, match=r"2\.png: changed"):
        unheard(encode_images(store, family, wants, CPU))
    assert calls == [2] and store.misses == 2
    again = Store(store.root.parent)
    unheard(encode_images(again, family, wanted(data), CPU))
    assert (again.hits, again.misses) == (2, 3)


def test_what_was_encoded_before_an_interruption_is_there(store: Store, family: Family, data: Path) -> None:
    encoding = encode_images(store, family, wanted(data), CPU)
    assert [next(encoding), next(encoding)] == [1, 2]
    encoding.close()
    assert (store.hits, store.misses) == (0, 2) and not list(store.root.rglob("*.open")), "and closed"
    again = Store(store.root.parent)
    assert list(encode_images(again, family, wanted(data), CPU)) == [2, 3, 4, 5]
    assert (again.hits, again.misses) == (2, 3)


def test_a_start_with_all_encoded_reads_no_entry_and_no_picture(
    store: Store, family: Family, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unheard(encode_images(store, family, wanted(data), CPU))
    unheard(encode_texts(store, family, "text_encoder", CAPTIONS))
    monkeypatch.setattr(Shards, "read", lambda *_: pytest.fail("an entry was read"))
    monkeypatch.setattr(images, "open_rgb", lambda *_: pytest.fail("a picture was read"))
    again = Store(store.root.parent)
    assert list(encode_images(again, family, wanted(data), CPU)) == [5]
    assert list(encode_texts(again, family, "text_encoder", CAPTIONS)) == [4]
    assert (again.hits, again.misses) == (9, 0)


def test_what_another_process_encodes_meanwhile_is_not_encoded_again(
    store: Store, family: Family, data: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what threads were decoding then, which is not kept twice."""
    monkeypatch.setattr("finetune.data.images.workers.worker_count", lambda: 1)
    wants = [want for crop in (STRAIGHT, Crop(0, False), Crop(4, False), Crop(0, True)) for want in wanted(data, crop)]
    encoding = encode_images(store, family, wants * 2, CPU)
    assert next(encoding) == 2, "each counts as often as it is wanted"
    unheard(encode_images(Store(store.root.parent), family, wants, CPU))
    before = len(calls)
    found = unheard(encoding)
    assert len(found) == usage(store.root.parent).images == 20
    assert store.misses == 1 and store.hits == 39 and len(calls) <= before + 3


def test_keys_of_images_are_quick_and_the_same(data: Path) -> None:
    key = ImageKeys("ab12")
    for want in (*wanted(data), *wanted(data, Crop(0, True), WIDE)):
        assert key(want) == entry_key(want.example.digest, want.bucket, want.crop, "ab12", "float32")


def test_numbers_are_by_name_and_crop() -> None:
    wants = [Wanted(Example(Path(n), n, "", "", (1, 1)), SQUARE, c) for n in "ab" for c in (STRAIGHT, Crop(0, True))]  # type: ignore[arg-type]
    numbers = images.ByCrop(wants, [4, 5, 6, 7])
    assert dict(numbers) == {(w.example.name, w.crop): n for w, n in zip(wants, [4, 5, 6, 7], strict=True)}
    assert len(numbers) == 4 and ("c", STRAIGHT) not in numbers and ("a", Crop(1, False)) not in numbers
