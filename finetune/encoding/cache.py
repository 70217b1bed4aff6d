"""Encode each image and caption once, and keep it under a name made of all that went into it.

An entry's name is a hash of content, transform, encoder weights, dtype and format version: it can be shared by every
run and is never stale. Images keep the autoencoder's *distribution*, so that each visit draws afresh.
"""

import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from finetune import tensors as weights
from finetune.data import decode
from finetune.data.buckets import Array, Bucket, fit, to_array
from finetune.data.example import Example
from finetune.errors import BaseError, DataError, RunError
from finetune.families import base
from finetune.families.base import Family, Moments, Prompt, Text, as_prompts

K = TypeVar("K")
V = TypeVar("V")

HELD_BYTES = 512 * 2**20
"""what is held in memory of encoded images, and of each encoder's captions; the rest is read again when it is shown"""
VERSION = "2"
KINDS = ("image", "text")
_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors|\.[0-9a-f]{64}\.safetensors\..*\.part")
PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""where a random crop may lie; few, so that each is encoded once"""
CENTER = 2


class Crop(NamedTuple):
    """One way of showing an image: where the window lies (an index of PLACES), and whether mirrored."""

    place: int
    flip: bool


STRAIGHT = Crop(CENTER, False)
"""as images are looked at when training is judged"""


class Wanted(NamedTuple):
    example: Example
    bucket: Bucket
    crop: Crop


class Store:
    """Tensors by key. Safe to kill and to share: an entry is written beside and renamed, and checked when read."""

    def __init__(self, root: Path) -> None:
        self.root = root / f"v{VERSION}"
        self.hits = self.misses = 0

    def get(self, kind: str, key: str) -> dict[str, Tensor] | None:
        """As `read`, and counted."""
        found = self.read(kind, key)
        self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return found

    def read(self, kind: str, key: str) -> dict[str, Tensor] | None:
        """None: there is none, or it is damaged."""
        path = self._path(kind, key)
        try:
            found = weights.load(path) if path.is_file() else None
            if found is None or weights.fingerprint(found) != weights.read_header(path).metadata.get("sha256"):
                return None
        except (BaseError, OSError):  # another process clears the cache meanwhile
            return None
        return found

    def put(self, kind: str, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Raises RunError: the cache cannot be written."""
        path = self._path(kind, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            weights.write(tensors, path, {"sha256": weights.fingerprint(tensors)}, flush=False)  # checked by `get`
        except OSError as e:
            raise RunError(
                f"cannot write into the cache {self.root}: {e.strerror}",
                "free some space, or name another folder: data.cache, or the variable FINETUNE_CACHE",
            ) from e

    def _path(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / f"{key}.safetensors"


class Stored(Mapping[K, V]):
    """Entries of the store by what they were made of. Each is read when it is asked for; the last ones are held."""

    def __init__(
        self, store: Store, kind: str, made: Callable[[dict[str, Tensor]], V], held_bytes: int | None = None
    ) -> None:
        self.store, self.kind, self.made = store, kind, made
        self.held_bytes = HELD_BYTES if held_bytes is None else held_bytes
        self.keys_of: dict[K, str] = {}
        self.held: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self.bytes = 0

    def add(self, name: K, key: str, entry: dict[str, Tensor]) -> None:
        """An entry that is in the store under this key."""
        self.keys_of[name] = key
        self._hold(key, entry)

    def __getitem__(self, name: K) -> V:
        """Raises RunError: the entry is no longer in the store."""
        key = self.keys_of[name]
        entry = self.held.get(key) or self.store.read(self.kind, key)
        if entry is None:
            raise RunError(
                f"an entry has gone from the cache {self.store.root}, or is damaged: {self.kind} {key}",
                "resume the run: what is missing is encoded again",
            )
        self._hold(key, entry)
        return self.made(entry)

    def __iter__(self) -> Iterator[K]:
        return iter(self.keys_of)

    def __len__(self) -> int:
        return len(self.keys_of)

    def _hold(self, key: str, entry: dict[str, Tensor]) -> None:
        if key not in self.held:
            self.bytes += _bytes(entry)
        self.held[key] = entry
        self.held.move_to_end(key)
        while self.bytes > self.held_bytes and len(self.held) > 1:
            self.bytes -= _bytes(self.held.popitem(last=False)[1])


def _bytes(entry: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in entry.values())


class Usage(NamedTuple):
    root: Path
    images: int
    captions: int
    bytes: int


def default_root() -> Path:
    """FINETUNE_CACHE, or the user's cache folder."""
    said = os.environ.get("FINETUNE_CACHE")
    return Path(said) if said else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "finetune"


def usage(root: Path) -> Usage:
    files = _files(root)
    count = {kind: sum(p.parts[-3] == kind and p.suffix == ".safetensors" for p in files) for kind in KINDS}
    return Usage(root, count["image"], count["text"], sum(p.stat().st_size for p in files))


def clear(root: Path) -> None:
    """Remove every entry, and nothing that is not the cache's own."""
    for file in _files(root):
        file.unlink(missing_ok=True)
    for kind in KINDS:
        for folder in (*root.glob(f"v*/{kind}/??"), *root.glob(f"v*/{kind}"), *root.glob("v*")):
            with suppress(OSError):  # something else is in it
                folder.rmdir()


def _files(root: Path) -> list[Path]:
    """Entries of every format version, and what a killed writer left beside them."""
    found = [p for kind in KINDS for p in root.glob(f"v*/{kind}/??/*") if p.is_file()]
    return [p for p in found if _ENTRY.fullmatch(p.name)]


def encode_images(
    store: Store, family: Family, wanted: Iterable[Wanted], device: torch.device
) -> Generator[int, None, Mapping[tuple[str, Crop], Moments]]:
    """(sample name, crop) -> its distribution, from the store or encoded now, one at a time, where the encoder is.

    Yields how many are done.

    Raises:
        DataError: an image's latents are not finite.
    """
    encoder = family.fingerprint("vae")
    found: Stored[tuple[str, Crop], Moments] = Stored(store, "image", lambda e: Moments(e["mean"], e["logvar"]))
    for done, want in enumerate(wanted, 1):
        key = _key(want.example.digest, want.bucket, want.crop, encoder, "float32")
        entry = store.get("image", key)
        if entry is None:
            pixels = torch.from_numpy(_pixels(want)).unsqueeze(0)
            moments = family.encode_images(pixels.to(device))
            entry = {"mean": moments.mean[0].cpu(), "logvar": moments.logvar[0].cpu()}
            if not all(bool(tensor.isfinite().all()) for tensor in entry.values()):
                raise DataError(f"{want.example.name}: the autoencoder gives numbers that are not finite", "remove it")
            store.put("image", key, entry)
        found.add((want.example.name, want.crop), key, entry)
        yield done
    return found


class Captions:
    """What the text encoders make of captions: the frozen ones made it once, the trained ones are asked each time."""

    def __init__(self, family: Family, known: Mapping[str, Mapping[str, Text]], device: torch.device) -> None:
        """known: encoder -> a prompt's key -> its text, without a batch axis."""
        self.family, self.known, self.device = family, known, device

    def made(self, prompts: Sequence[Prompt | str]) -> dict[str, Text]:
        """Each frozen encoder -> what it made of these, on the device."""
        keys = [prompt.key for prompt in as_prompts(prompts)]
        stacked = {e: Text.stacked([texts[key] for key in keys]) for e, texts in self.known.items()}
        return {e: text.each(lambda part: part.to(self.device)) for e, text in stacked.items()}

    def read(self, prompts: Sequence[Prompt | str]) -> Text:
        """What the denoiser reads."""
        return base.read(self.family, prompts, self.made(prompts))


def read_ahead(family: Family, prompts: Iterable[Prompt | str], device: torch.device) -> Captions:
    """Prompts as the large text encoders read them, which are then let go: the denoiser needs their room."""
    wanted, texts = {prompt.key: prompt for prompt in as_prompts(prompts)}, {}
    for encoder in base.large_encoders(family):
        family.parts.load(encoder).to(device, encoder)
        with torch.no_grad():
            made = {key: family.encode(encoder, [prompt]) for key, prompt in wanted.items()}
        texts[encoder] = {key: text.each(lambda part: part[0].cpu()) for key, text in made.items()}
        family.parts.release(encoder)
    return Captions(family, texts, device)


def encode_texts(
    store: Store, family: Family, encoder: str, prompts: Iterable[Prompt | str]
) -> Generator[int, None, Mapping[str, Text]]:
    """A prompt's key -> its text by one frozen encoder, without a batch axis, from the store or encoded now.

    Yields how many are done.
    """
    weights_of = family.fingerprint(encoder)
    found: Stored[str, Text] = Stored(store, "text", lambda entry: Text(**entry))
    for done, prompt in enumerate(as_prompts(prompts), 1):
        key = _key(
            prompt.caption, *(image.digest for image in prompt.images), family.facts.max_tokens, encoder, weights_of
        )
        entry = store.get("text", key)
        if entry is None:
            with torch.no_grad():
                made = _trimmed(family.encode(encoder, [prompt]).each(lambda part: part[0].cpu()))
            entry = {name: tensor for name, tensor in made._asdict().items() if tensor is not None}
            store.put("text", key, entry)
        found.add(prompt.key, key, entry)
        yield done
    return found


def _trimmed(text: Text) -> Text:
    """Without what only fills a caption up."""
    if text.mask is None:
        return text
    length = int(text.mask.nonzero().max()) + 1
    return Text(text.tokens[:length].clone(), text.pooled, text.mask[:length].clone())


def _pixels(want: Wanted) -> "Array":
    image = decode.open_rgb(want.example.path)
    return to_array(fit(image, want.bucket, PLACES[want.crop.place], want.crop.flip))


def _key(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(repr, (VERSION, *parts))).encode()).hexdigest()
