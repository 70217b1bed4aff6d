"""Pictures for a verdict: painted in batches, and kept beside the run under a name made of all that went into them."""

import hashlib
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from PIL import Image

from finetune import families, reading, writing
from finetune.data.images.decode import DECODER_ERRORS
from finetune.errors import BaseError, RunError
from finetune.events import Advanced, Event, Stage
from finetune.files import layouts
from finetune.planning.resolve import precision
from finetune.sampling.png import write_png
from finetune.sampling.request import AdapterWeight, SampleRequest, SessionOptions
from finetune.sampling.session import Session
from finetune.tensors import digest, file_sha256, payload_sha256

_VERSION = 1
"""counts up when pictures of the same request come out otherwise"""
_DIGITS = 24
"""of a picture's name"""
PIPELINE = "model_index.json"
"""in a folder that holds a whole pipeline"""
BASE_ROW = ""
"""the row of the base, in place of an adapter's digest"""


class Painter(Protocol):
    """Opens what paints a row: the base, then with the adapter."""

    def base(self, prompts: Sequence[str]) -> AbstractContextManager[Session]: ...

    def adapted(self, prompts: Sequence[str]) -> AbstractContextManager[Session]: ...


class FromFile:
    """One base, opened once, and an adapter file in it; or a whole pipeline in its place."""

    def __init__(self, base: str, adapter: Path, options: SessionOptions) -> None:
        self._base, self._adapter, self._options = base, adapter, options
        self._session: Session | None = None

    @contextmanager
    def base(self, prompts: Sequence[str]) -> Iterator[Session]:
        self._session = Session.open(self._base, prompts, (), self._options)
        yield self._session

    @contextmanager
    def adapted(self, prompts: Sequence[str]) -> Iterator[Session]:
        if reading.is_file(self._adapter / PIPELINE):
            self._session = None
            yield Session.open(str(self._adapter), prompts, (), self._options)
            return
        session = self._session or Session.open(self._base, prompts, (), self._options)
        session.load_adapters([AdapterWeight(self._adapter)])
        yield session


class PictureStore:
    """A folder of pictures of a base, each under a name made of all that went into it."""

    def __init__(self, folder: Path, base: str, options: SessionOptions, way: str = "FromFile") -> None:
        """way: how the base was opened, where that changes pictures."""
        self.folder, self.options, self._way = folder, options, way
        self._precision = precision(options.precision, "`precision`")  # what `auto` is here changes pictures
        self._base = Path(families.locate(base))
        self._base_id = files_id(self._base)

    def path(self, row: str, request: SampleRequest) -> Path:
        """row: what is applied to the base; empty: nothing."""
        told = [_VERSION, self._base_id, row, request, self.options, self._way, self._precision]
        return self.folder / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:_DIGITS]}.png"

    def check(self, row: str, adapter: Path | None) -> None:
        """To be called after base and adapter have been read for the pictures of a row.

        Raises:
            BaseError: one of them is no longer what the pictures are named by.
        """
        changed = self._base if files_id(self._base) != self._base_id else None
        if adapter is not None and content_id(adapter) != row.partition("@")[0]:
            changed = adapter
        if changed is not None:
            raise BaseError(f"{changed} was changed while it was read", "leave it as it is meanwhile, and start again")

    def kept(self, row: str, request: SampleRequest) -> Image.Image | None:
        try:
            with Image.open(self.path(row, request)) as found:
                return found.convert("RGB")
        except (*DECODER_ERRORS, Image.DecompressionBombError):  # none yet, or cut short
            return None

    def keep(self, row: str, request: SampleRequest, image: Image.Image, adapter: str, weight: float = 1.0) -> None:
        """Raises RunError: it cannot be written."""
        path = self.path(row, request)
        try:
            write_png(image, path, {**request.described(), "adapter": f"{adapter}:{weight:g}" if adapter else ""})
        except OSError as e:
            raise RunError(f"cannot write {path}: {e.strerror}", "free some space") from e

    def all(self, row: str, wanted: Sequence[SampleRequest]) -> tuple[Image.Image, ...]:
        """Of requests that are kept."""
        found = [self.kept(row, request) for request in wanted]
        return tuple(image for image in found if image is not None)


class Gallery:
    """A base and an adapter, or a whole pipeline in its place. Pictures that were painted once are read again.

    painter: how the rows are opened; from the files unless said otherwise.
    """

    def __init__(
        self, folder: Path, base: str, adapter: Path, options: SessionOptions, painter: Painter | None = None
    ) -> None:
        self.adapter = adapter
        self._painter = painter or FromFile(base, adapter, options)
        self._store = PictureStore(folder, base, options, type(self._painter).__name__)
        self._row_id = content_id(adapter)

    def paint(
        self, ours: Sequence[SampleRequest], theirs: Sequence[SampleRequest]
    ) -> Generator[Event, None, tuple[list[Image.Image], list[Image.Image]]]:
        """The adapter's pictures of `ours`, and the base's of `theirs`. Only what is not kept yet is painted; killed
        in between, it goes on where it was.

        Raises:
            RunError: the folder cannot be written.
            VerifyError: the adapter cannot be read whole for this base.
        """
        due = {row: [r for r in wanted if self._store.kept(row, r) is None]
               for row, wanted in ((BASE_ROW, theirs), (self._row_id, ours))}  # fmt: skip
        total = sum(map(len, due.values()))
        if total:
            needed = sum(3 * r.width * r.height for some in due.values() for r in some)
            writing.try_folder(self._store.folder, (f"{'0' * _DIGITS}.png",), needed, writing.FREE_IT)
            yield Stage("evaluating", total)
            yield from (Advanced(done) for done, _ in enumerate(self._painted(due), 1))
        return list(self._store.all(self._row_id, ours)), list(self._store.all(BASE_ROW, theirs))

    def _painted(self, due: dict[str, list[SampleRequest]]) -> Iterator[None]:
        prompts = [text for wanted in due.values() for r in wanted for text in (r.prompt, r.negative)]
        for row, wanted in due.items():
            if not wanted:
                continue
            opened = self._painter.base(prompts) if row == BASE_ROW else self._painter.adapted(prompts)
            with opened as session:
                self._store.check(row, None if row == BASE_ROW else self.adapter)
                for request, picture in zip(wanted, session.generate_many(wanted), strict=True):
                    self._store.keep(row, request, picture.image, "" if row == BASE_ROW else self.adapter.name)
                    yield


def content_id(adapter: Path) -> str:
    """Of an adapter file or a PEFT folder: what its weights are, wherever it lies; of a pipeline its files."""
    if reading.is_file(adapter / PIPELINE):
        return files_id(adapter)
    if reading.is_file(adapter):
        return payload_sha256(adapter)
    files = sorted(layouts.adapter_in(adapter).rglob("adapter_*"))  # alphas are in adapter_config.json
    return digest("".join(map(file_sha256, files)))


def files_id(base: Path) -> str:
    """Of a base, which is too large to be read for this: its files by name, size and time."""
    files = [base] if reading.is_file(base) else sorted(p for p in base.rglob("*") if reading.is_file(p))
    stats = [(p.resolve().name, (found := p.stat()).st_size, found.st_mtime_ns) for p in files]
    return digest(json.dumps(stats))
