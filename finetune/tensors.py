"""safetensors files and tensors: whole or not, what they hold, and their fingerprints.

Format: 8 bytes little-endian header length n, n bytes of JSON, then the payload.
"""

import hashlib
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from finetune import reading
from finetune.errors import BaseError
from finetune.saving import write_bytes as write_bytes

_MAX_HEADER_BYTES = 25 << 20
"""the format allows 100 MB; a header of 10,000 tensors has about 1 MiB"""
_MAX_TENSORS = 100_000
"""the largest models have some ten thousand; each is looked at several times"""
PICKLED = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


class Header(NamedTuple):
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    payload_start: int


def read_header(path: Path) -> Header:
    """Names, shapes and metadata of a safetensors file, without its weights.

    Raises:
        BaseError: not there, pickled, not safetensors, or truncated.
    """
    if not reading.is_file(path):
        raise BaseError(reading.absent(path), "check the path")
    if path.suffix.lower() in PICKLED:
        raise BaseError(
            f"{path} is a pickled file, which can run code when it is opened: refused",
            'convert it once: python -c "import torch,safetensors.torch as s,sys; d=torch.load(sys.argv[1],'
            "map_location='cpu',weights_only=True); d=d.get('state_dict',d); s.save_file({k:v.contiguous().clone() "
            f"for k,v in d.items() if hasattr(v,'shape')}},sys.argv[2])\" {path} {path.with_suffix('.safetensors')}",
        )
    try:
        return _header(path)
    except OSError as e:
        raise BaseError(f"cannot read {path}: {e.strerror}", "check its permissions, or copy it again") from e


def _header(path: Path) -> Header:
    """Raises OSError: it cannot be read. BaseError: as `read_header`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= 100_000_000:
            raise BaseError(
                f"{path} is not a safetensors file", "it may be truncated or of another format: fetch it again"
            )
        if length + 8 > size:
            raise BaseError(f"{path} is truncated inside its header", "copy or download it again")
        if length > _MAX_HEADER_BYTES:
            raise BaseError(
                f"{path}: its header has {length:,} bytes, and no model needs {_MAX_HEADER_BYTES:,}", "get another file"
            )
        content = file.read(length)
        if (tensors := content.count(b'"data_offsets"')) > _MAX_TENSORS:
            raise BaseError(
                f"{path}: its header names {tensors:,} tensors, and no model has {_MAX_TENSORS:,}", "get another file"
            )
        try:
            table = reading.json_table(content.decode(), str(path), BaseError, "")
            metadata = _texts(table.pop("__metadata__", {}))
            shapes = {name: tuple(map(_count, entry["shape"])) for name, entry in table.items()}
            dtypes = {name: str(entry["dtype"]) for name, entry in table.items()}
            end = 8 + length + max((_count(entry["data_offsets"][1]) for entry in table.values()), default=0)
        except (ValueError, TypeError, LookupError, AttributeError, BaseError) as e:
            raise BaseError(f"{path}: the safetensors header is damaged", "copy or download it again") from e
    if end != size:
        state = "truncated" if end > size else "longer than its header says"
        raise BaseError(f"{path} is {state}: {size:,} bytes, {end:,} expected", "copy or download it again")
    return Header(metadata, shapes, dtypes, 8 + length)


def _texts(found: object) -> dict[str, str]:
    """Raises TypeError for metadata that is not all text, as the format wants it."""
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise TypeError
    return found


def _count(found: object) -> int:
    """Raises TypeError for what is no size."""
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < 1 << 62:
        raise TypeError
    return found


def load_tensors(path: Path, wanted: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
    """The tensors of a whole safetensors file, on the CPU; wanted: of these names only, and the others are not read.

    Raises:
        BaseError: as `read_header`.
    """
    names = [name for name in read_header(path).shapes if wanted is None or wanted(name)]
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as e:
        raise BaseError(f"{path}: the safetensors header is damaged: {e}", "copy or download it again") from e
    except OSError as e:
        raise BaseError(f"cannot read {path}: {e.strerror or e}", "check its permissions, or copy it again") from e


def payload_sha256(path: Path) -> str:
    """Of all bytes after the header: the same whatever the metadata says."""
    start = read_header(path).payload_start
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str], flush: bool = True) -> None:
    """As `write_bytes`."""
    write_bytes(to_bytes(tensors, metadata), path, flush)


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """A safetensors file."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # safetensors makes broken JSON of no tensors and no metadata
    return save(whole, dict(metadata) or None)


def from_bytes(content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises BaseError: it is none."""
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as e:
        raise BaseError(f"these {len(content)} bytes are no safetensors file: {e}", "make them again") from e


def digest(text: str) -> str:
    """A short name for a text: 16 hex digits of its sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes, dtypes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
