"""Several threads decode: what one would give, in its order, within the memory that one picture may take."""

import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image
from support.nasty_folder import build, encoded, picture

from finetune.data import examine
from finetune.data.audit import audit
from finetune.data.images import costs, decode, workers
from finetune.data.images.costs import Room
from finetune.data.images.workers import in_order
from finetune.data.prepare import prepare
from finetune.events import Advanced, Stage


def large(_: object) -> int:
    return workers.SMALL_BYTES + 1


@pytest.fixture
def threaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture is handed over, whatever this machine has."""
    monkeypatch.setattr(workers, "SMALL_BYTES", -1)
    monkeypatch.setattr(workers, "worker_count", lambda: 4)


def test_threads_find_what_one_finds_and_prepare_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "nasty")
    found, written = [], []
    for count in (1, 4):
        monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / f"cache {count}"))
        monkeypatch.setattr(workers, "SMALL_BYTES", -1)
        monkeypatch.setattr(workers, "worker_count", lambda count=count: count)
        monkeypatch.setattr("finetune.data.prepare.worker_count", lambda count=count: count)
        found.append(audit(tmp_path / "nasty", trigger="sks", class_word="mug"))
        sound = tmp_path / f"sound {count}"
        sound.mkdir()
        for i in range(9):
            kind = ("PNG", "JPEG", "BMP")[i % 3]
            (sound / f"{i}.{kind.lower()}").write_bytes(encoded(picture(i).convert("L" if i % 2 else "RGB"), kind))
        made = prepare(sound, tmp_path / f"out {count}", trigger="sks", class_word="mug")
        written.append({p.relative_to(made.root): p.read_bytes() for p in made.root.rglob("*") if p.is_file()})
    assert found[0] == found[1] and len(found[0].rejected) > 5
    assert written[0] == written[1] and len(written[0]) == 11


def test_the_order_is_kept_and_several_are_worked_on_at_once() -> None:
    both = threading.Barrier(2, timeout=60)

    def work(item: int) -> tuple[int, str]:
        if item < 2:
            both.wait()  # which one thread alone would wait for in vain
        return item, threading.current_thread().name

    done = list(in_order(work, range(40), large, 2))
    assert [item for item, _ in done] == list(range(40))
    assert {name.split("_")[0] for _, name in done} == {"decode"}


def test_small_pictures_and_a_single_core_need_no_threads() -> None:
    here = threading.current_thread().name
    for size, count in ((lambda _: 10, 4), (large, 1)):
        assert set(in_order(lambda _: threading.current_thread().name, range(40), size, count)) == {here}
    sizes = [10, 10, workers.SMALL_BYTES + 1, 10, workers.SMALL_BYTES + 1] * 4
    names = list(in_order(lambda _: threading.current_thread().name, sizes, lambda size: size, 2))
    assert [name == here for name in names] == [size == 10 for size in sizes]


def test_when_it_is_left_nothing_more_is_begun_and_no_thread_stays() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        return item

    going = in_order(work, iter(range(10**9)), large, 2)
    assert list(islice(going, 3)) == [0, 1, 2]
    going.close()
    assert len(begun) <= 3 + workers.WAITING * 2 + 1
    assert not [one for one in threading.enumerate() if one.name.startswith("decode")]


def test_an_error_comes_at_its_place_and_ends_the_work() -> None:
    def work(item: int) -> int:
        if item == 5:
            raise KeyboardInterrupt
        return item

    done: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        done.extend(in_order(work, range(100), large, 3))
    assert not [one for one in threading.enumerate() if one.name.startswith("decode")]


def test_a_room_holds_no_more_than_it_has_and_lets_the_largest_in_alone() -> None:
    room, held, most = Room(1.0), [], []
    lock = threading.Lock()

    def take(share: float) -> None:
        with room.taken(share):
            with lock:
                held.append(share)
                most.append(sum(held))
            threading.Event().wait(0.005)
            with lock:
                held.remove(share)

    shares = [0.5, 0.5, 7.0, 0.25, 0.25, 0.5, 1.0, 0.1]
    threads = [threading.Thread(target=take, args=(share,)) for share in shares * 3]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert len(most) == 24 and max(min(total, 1.0) if total == 7.0 else total for total in most) <= 1.0
    assert sum(total == 7.0 for total in most) == 3, "what is larger than the room has it alone"


@pytest.mark.usefixtures("threaded")
@pytest.mark.parametrize("share, at_once", [(0.6, 1), (0.3, 3)])
def test_pictures_that_are_decoded_together_are_no_more_than_one_may_be(
    share: float, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the room that each is found to take; `costs.share` says of the largest that it is all of it."""
    for i in range(12):
        picture(i).save(tmp_path / f"{i}.png")
    inside, most, lock, loaded = [0], [0], threading.Lock(), decode._loaded

    def watched(*arguments: object) -> object:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        threading.Event().wait(0.02)
        try:
            return loaded(*arguments)  # type: ignore[arg-type]
        finally:
            with lock:
                inside[0] -= 1

    monkeypatch.setattr(decode, "_loaded", watched)
    monkeypatch.setattr(costs, "share", lambda _: share)
    assert len(audit(tmp_path, trigger="sks", class_word="mug").used) == 12
    assert 1 <= most[0] <= at_once
    if at_once > 1:
        assert most[0] > 1, "and they are decoded together at all"


def test_the_largest_picture_of_each_kind_takes_all_of_the_room() -> None:
    class Header:
        def __init__(self, form: str, pixels: int, tile: str = "") -> None:
            self.format, self.width, self.height, self.tile = form, pixels, 1, [(tile,)] if tile else []

    for header in (Header("JPEG", costs.MAX_PIXELS), Header("WEBP", 80_000_000), Header("PPM", 4_000_000, "ppm_plain")):
        assert costs.share(header) == 1.0  # type: ignore[arg-type]
    assert costs.share(Header("JPEG", 16_000_000)) == 0.1  # type: ignore[arg-type]


def test_warnings_of_decoders_are_silent_in_threads_and_their_filters_are_put_back() -> None:
    before = list(warnings.filters)

    def work(item: int) -> int:
        with decode.SILENCE:
            warnings.warn("a broken EXIF block", UserWarning, stacklevel=1)
        return item

    assert len(list(in_order(work, range(60), large, 4))) == 60
    assert list(warnings.filters) == before
    with pytest.warns(UserWarning, match="heard again"):
        warnings.warn("heard again", UserWarning, stacklevel=1)


@contextmanager
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(examine, "MANY", 3)
        yield


def test_how_far_it_is_is_told_where_there_are_many(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.data.audit import auditing
    from finetune.data.folder import Rules
    from finetune.data.text.captions import clean_words

    words = clean_words("sks", "mug", None)
    assert list(auditing(photos, words, Rules())) == []
    with few_are_many(monkeypatch):
        told = list(auditing(photos, words, Rules()))
    assert told[0] == Stage("checking images", 4) and told[-1] == Advanced(4)


def test_a_plain_script_without_a_guard_decodes_in_threads(tmp_path: Path) -> None:
    """As a notebook does: nothing is started that would run the script again."""
    for i in range(6):
        Image.effect_noise((200, 200), 90).convert("RGB").save(tmp_path / f"{i}.png")
    script = (
        "import pathlib, sys\nfrom finetune.data.images import workers\nfrom finetune.data.audit import audit\n"
        "workers.worker_count = lambda: 3\nprint('once')\n"
        f"print(len(audit(pathlib.Path({str(tmp_path)!r}), trigger='sks', class_word='mug').used))\n"
    )
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["once", "6"]
