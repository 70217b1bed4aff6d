"""The cache of encoded images: a file for each entry against shards, and pictures encoded one by one against threads,
processes and batches. `python benchmarks/cache.py [--entries 20000] [--pictures 96] [--rounds 3]`: CPU and clock.
"""

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from finetune import families, tensors
from finetune.data.example import Example, Size
from finetune.data.images.buckets import Bucket, fit, to_array
from finetune.data.images.decode import open_rgb
from finetune.encoding import images, text
from finetune.encoding.images import STRAIGHT, Wanted, encode_images
from finetune.encoding.single_files import SingleFiles
from finetune.encoding.store import Store
from finetune.encoding.text import encode_texts
from finetune.events import unheard
from finetune.families.base import Family

W = TypeVar("W")
CPU = torch.device("cpu")
ENTRY = {"mean": torch.randn(4, 8, 8), "logvar": torch.randn(4, 8, 8)}


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(CPU, clock) seconds, of this process."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - clock


def shown(what: str, took: tuple[float, float], count: int) -> None:
    sys.stdout.write(
        f"{what:44} CPU {took[0]:7.2f} s, clock {took[1]:7.2f} s, {1e6 * took[0] / count:8.1f} us of CPU each\n"
    )


def write_file(folder: Path, key: bytes) -> None:
    """As the format before did."""
    path = folder / key.hex()[:2] / f"{key.hex()}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors.write_tensors(ENTRY, path, {"sha256": tensors.fingerprint(ENTRY)}, flush=False)


def of_layouts(root: Path, count: int) -> None:
    keys = [hashlib.sha256(str(n).encode()).digest() for n in range(count)]
    old, store = SingleFiles(root / "v2/image"), Store(root)

    def pack() -> None:
        entries = store.entries("image", keys)
        for number in entries.numbers:
            entries.put(number, ENTRY)
        store.seal("image")

    def read() -> None:
        entries = store.entries("image", keys)
        assert all(entries.read(number) for number in entries.numbers)

    shown("a file an entry: written", timed(lambda: [write_file(old.folder, key) for key in keys]), count)
    shown("a file an entry: start, each read", timed(lambda: [old.read(key) for key in keys]), count)
    shown("shards: written", timed(pack), count)
    shown("shards: start, keys only", timed(lambda: store.entries("image", keys)), count)
    shown("shards: each found and read", timed(read), count)
    for version in ("v2", "v3"):
        files = [path for path in (root / version).rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        blocks = 512 * sum(path.stat().st_blocks for path in files)
        sys.stdout.write(f"{version}: {len(files):,} files, {size:,} bytes, {blocks:,} on the disk\n")


def photos(root: Path, count: int, px: int) -> list[Wanted]:
    wants = []
    for n in range(count):
        path = root / f"{n}.jpg"
        small = np.random.default_rng(n).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(small).resize((1280, 960), Image.Resampling.BICUBIC).save(path, quality=92)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        wants.append(Wanted(Example(path, path.name, "", digest, Size(1280, 960)), Bucket(px, px), STRAIGHT))
    return wants


def decoded(want: Wanted) -> Tensor:
    return torch.from_numpy(to_array(fit(open_rgb(want.example.path, digest=want.example.digest), want.bucket)))


def by_one(family: Family, wants: list[Wanted]) -> None:
    for want in wants:
        family.encode_images(decoded(want)[None])


def by_processes(family: Family, wants: list[Wanted]) -> None:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for pixels in pool.map(decoded, wants, chunksize=4):
            family.encode_images(pixels[None])


def of_encoding(root: Path, count: int, rounds: int) -> None:
    family = families.load("pocket", torch.float32)
    for px in (64, 256):
        wants = photos(root, count, px)

        def by_threads(batch: int, px: int = px, wants: list[Wanted] = wants) -> None:
            images.ENCODED_PX["cpu"] = batch * px * px
            with tempfile.TemporaryDirectory() as folder:
                unheard(encode_images(Store(Path(folder)), family, wants, CPU))

        ways: dict[str, Callable[[], object]] = {
            "one by one": partial(by_one, family, wants),
            "threads, one by one": partial(by_threads, 1),
            "threads, batches of 8": partial(by_threads, 8),
            "two processes": partial(by_processes, family, wants),
        }
        for way, times in in_turns(ways, rounds).items():
            shown(f"{px} px, {way}", (median(t[0] for t in times), median(t[1] for t in times)), count)
    captions = [f"a cup number {n} on a table by the window" for n in range(count)]

    def captioned(batch: int) -> None:
        text.TOGETHER["cpu"] = batch
        with tempfile.TemporaryDirectory() as folder:
            unheard(encode_texts(Store(Path(folder)), family, "text_encoder", captions))

    for batch, times in in_turns({n: partial(captioned, n) for n in (1, 8)}, rounds).items():
        shown(f"captions, batches of {batch}", (median(t[0] for t in times), median(t[1] for t in times)), count)


def in_turns(ways: dict[W, Callable[[], object]], rounds: int) -> dict[W, list[tuple[float, float]]]:
    took: dict[W, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            took[way].append(timed(work))
    return took


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__)
    told.add_argument("--entries", type=int, default=20_000)
    told.add_argument("--pictures", type=int, default=96)
    told.add_argument("--rounds", type=int, default=3)
    asked = told.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        of_layouts(Path(folder), asked.entries)
    with tempfile.TemporaryDirectory() as folder:
        of_encoding(Path(folder), asked.pictures, asked.rounds)


if __name__ == "__main__":
    main()
