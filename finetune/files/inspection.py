"""What an adapter file is, from the file alone."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finetune import reading, references
from finetune import tensors as weights
from finetune.adapters.change import Change
from finetune.adapters.lora import Lora, norm
from finetune.adapters.methods import METHODS
from finetune.families.readers import TITLES
from finetune.files import layouts
from finetune.unchanged import Stamps


@dataclass(frozen=True)
class ModuleChange:
    """One module's change."""

    module: str
    rank: int
    scale: float
    norm: float | None
    """Frobenius, of the whole change; None: it depends on the base's weight"""


@dataclass(frozen=True)
class Inspection:
    file: str
    layout: str
    method: str
    """LoRA, DoRA; of several, each"""
    size_bytes: int
    tensors: int
    dtypes: dict[str, int]
    """how many tensors of each"""
    modules: tuple[ModuleChange, ...]
    components: dict[str, int]
    """how many modules of each"""
    ranks: dict[str, int]
    """rank -> modules"""
    trained_ranks: dict[str, int]
    """the same before padding to one rank, as a file of ours tells"""
    trigger: str
    base: str
    base_version: str
    license: str
    recipe: str
    """TOML"""
    payload_sha256: str
    stated_sha256: str
    problems: tuple[str, ...]
    metadata: dict[str, str]


def inspect(file: Path) -> Inspection:
    """Of a file, a folder, or a step of a run (RUN@500). Raises BaseError when it cannot be read at all, or is changed
    meanwhile."""
    file = references.adapter_path(file)
    stamps = Stamps.of(layouts.adapter_files(file))
    adapter = layouts.read_adapter(file)
    where = file if reading.is_file(file) else layouts.adapter_in(file)
    # a checkpoint's optimizer lies beside its adapter
    files = [where] if reading.is_file(where) else sorted(where.rglob(layouts.PEFT_WEIGHTS))
    headers = [weights.read_header(path) for path in files]
    told = adapter.metadata
    parts = tuple(_part(name, change) for name, change in sorted(adapter.modules.items()))
    trained = [rank for rank, _ in layouts.expected(told).values() if rank]
    payload = weights.payload_sha256(files[0]) if len(files) == 1 else ""
    stamps.check()
    return Inspection(
        file=file.name,
        layout=adapter.layout,
        method=" and ".join(sorted({METHODS[change.kind].TITLE for change in adapter.modules.values()})),
        size_bytes=sum(path.stat().st_size for path in files),
        tensors=sum(len(header.shapes) for header in headers),
        dtypes=dict(Counter(dtype for header in headers for dtype in header.dtypes.values())),
        modules=parts,
        components=dict(Counter(_component(part.module) for part in parts)),
        ranks=_counted(part.rank for part in parts),
        trained_ranks=_counted(trained),
        trigger=told.get("finetune.trigger") or told.get("modelspec.trigger_phrase", ""),
        base=told.get("finetune.base") or told.get("ss_sd_model_name", ""),
        base_version=told.get("ss_base_model_version") or told.get("modelspec.architecture", ""),
        license=told.get("modelspec.license", ""),
        recipe=told.get("finetune.recipe", ""),
        payload_sha256=payload,
        stated_sha256=told.get("sshs_model_hash", ""),
        problems=(
            *adapter.problems,
            *adapter.warnings,
            *adapter.notes,
            *(f"{TITLES[p]}: {why}" for p, why in adapter.misread.items() if p in adapter.known_to),
        ),
        metadata=told,
    )


def _part(name: str, change: Change) -> ModuleChange:
    size = norm(change) if isinstance(change, Lora) else None
    return ModuleChange(name, change.rank, change.scale, size)


def _component(name: str) -> str:
    kohya = re.match(r"lora_(?:unet|te(\d*))_", name)
    if kohya is None:
        return name.partition(".")[0]
    number = kohya[1]
    return "unet" if number is None else "text_encoder" + (f"_{number}" if number not in ("", "1") else "")


def _counted(ranks: Iterable[int]) -> dict[str, int]:
    return {str(rank): count for rank, count in sorted(Counter(ranks).items())}
