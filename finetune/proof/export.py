"""Adapters out: files for every reader, the model card, the merged pipeline; and from one layout into another."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from finetune import families, machine, reading, references, writing
from finetune import tensors as weights
from finetune.adapters.change import AdapterState, Change
from finetune.choices import Dtype, Layout, ReaderName
from finetune.errors import BaseError, RunError, VerifyError, action
from finetune.families.readers import TITLES
from finetune.files import layouts, metadata
from finetune.files.inspection import Inspection, inspect
from finetune.files.kinds import advice_on_file
from finetune.files.metadata import About
from finetune.files.spelling import readers_of
from finetune.proof.applied import TOLERANCE, difference, weight_of
from finetune.proof.card import write_model_card
from finetune.proof.chatter import quiet
from finetune.proof.verify import Report, adaptable_shapes, shape_mismatches, verify
from finetune.saving import whole_or_not
from finetune.shortage import MERGING, out_of_memory

__all__ = ["About", "Exported", "Inspection", "Merged", "Report", "convert", "export", "inspect", "merge", "verify"]

FILE_DTYPES: dict[Dtype, torch.dtype] = {name: machine.DTYPES[name] for name in get_args(Dtype)}


class Merged(NamedTuple):
    folder: Path
    lost: float
    """share of the change that rounding to the saved dtype lost: |saved - exact| / |change|, over all weights"""


class Exported(NamedTuple):
    universal: Path | None
    diffusers: Path | None
    peft: Path
    """the lossless master"""
    card: Path
    merged: Merged | None


def export(
    modules: AdapterState,
    out_dir: Path,
    name: str,
    wanted: Collection[Layout],
    dtype: Dtype,
    about: About,
    base: str = "",
    prompts: Sequence[str] = (),
) -> Exported:
    """Write an adapter folder: peft/ and README.md always; NAME.safetensors and NAME.json, NAME-diffusers.safetensors
    and merged/ as wanted. `base` is what merged/ is made from; prompts: examples for the card, which is
    written again, by `card.write_model_card`, when there are pictures.

    Raises:
        VerifyError: nothing to export, or the dtype cannot hold it.
        RunError: a text names this machine; the folder cannot be written.
    """
    if not modules:
        raise VerifyError("the adapter holds no modules: nothing to export", "was it trained?")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        peft = write_peft_folder(modules, out_dir / "peft", name, about)
        universal = diffusers = merged = None
        if "universal" in wanted:
            universal = write_file(modules, out_dir / f"{name}.safetensors", "universal", dtype, about)
        if "diffusers" in wanted:
            diffusers = write_file(modules, out_dir / f"{name}-diffusers.safetensors", "diffusers", dtype, about)
        if "merged" in wanted:
            merged = merge(modules, base, out_dir / "merged", dtype)
        card = write_model_card(out_dir, name, about, sorted(wanted), prompts)
    except OSError as e:
        raise RunError(f"cannot write {e.filename or out_dir}: {e.strerror}", "is the disk full or read-only?") from e
    return Exported(universal, diffusers, peft, card, merged)


def convert(
    source: Path, layout: Layout, out: Path, base: str = "", dtype: Dtype = "float32",
    readers: Collection[ReaderName] = (),
) -> float:  # fmt: skip
    """Any adapter, or a step of a run (RUN@500), into another layout, at `out` (a file; a folder for peft and merged),
    and re-opened there.

    Returns the worst relative difference between what was read and what was written; for merged, the share of the
    change that rounding lost. With a base, the file is also verified in it. readers: programs that must read it.

    Raises:
        BaseError: the source cannot be read, or the base must be told.
        RunError: `out` exists, or cannot be written.
        VerifyError: something in the source has no place; or the result is not the source.
    """
    if reading.exists(out):
        raise RunError(f"{out} exists", "choose another `out`, or move it away")
    if readers and layout in ("peft", "merged"):
        raise RunError(f"`readers` are of files, and the layout {layout} is a folder", "leave out `readers`")
    writing.try_file(out)
    source = references.adapter_path(source)
    names = base_sites(base) if base else None
    adapter = layouts.read_adapter(source, names, families.detect(base).family if base else "")
    unknown = [warning for warning in adapter.warnings if warning == layouts.ASSUMED]
    problems = [*adapter.problems, *unknown, *(shape_mismatches(adapter.modules, names) if names else ())]
    if problems or not adapter.modules:
        several = len(problems) > 1
        more = f", and {len(problems) - 1} more" if several else ""
        all_of_them = ("see all that is wrong with it", action("verify", file=source, base=base))
        raise VerifyError(
            f"{source} cannot be converted whole: {(problems or ['it holds no changes'])[0]}{more}",
            advice_on_file(problems),
            other=all_of_them if several else None,
        )
    if any("." not in name for name in adapter.modules):
        raise BaseError(f"{source} has kohya names, which only the base's own names can resolve", "name it: `base`")
    if layout == "merged" and not base:
        raise BaseError("a merged pipeline needs the base", "name it: `base`")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if layout == "merged":
            return merge(adapter.modules, base, out, dtype).lost
        if layout == "peft":
            write_peft_folder(adapter.modules, out, out.name, _about(adapter, base))
        else:
            write_file(adapter.modules, out, layout, dtype, _about(adapter, base))
    except OSError as e:
        raise RunError(f"cannot write {e.filename or out}: {e.strerror}", "is the disk full or read-only?") from e
    worst = _reopened(adapter.modules, out, "float32" if layout == "peft" else dtype)
    if readers:
        _check_readers(adapter.modules, out, readers)
    report = verify(out, base, adapter.modules, readers=readers) if base else None
    if report and not report.ok:
        raise VerifyError(
            f"{out} does not do what {source} does: {report.problems[0]}",
            "see all",
            action("verify", file=out, base=base),
        )
    return worst


@out_of_memory("while the adapter is merged", MERGING)
def merge(modules: AdapterState, base: str, folder: Path, dtype: Dtype) -> Merged:
    """A diffusers pipeline with the change inside: added in float32 to freshly loaded weights, rounded once."""
    family = families.load(base, torch.float32)
    families.refuse_unknown(base, family.facts)  # the pipeline will say what it predicts
    wrong, whole = 0.0, 0.0
    for name, one in sorted(modules.items()):
        weight = weight_of(family, name)
        change = one.delta(weight.data.reshape(one.shape)).reshape(weight.shape)
        exact = weight.data + change
        wrong += float((exact.to(FILE_DTYPES[dtype]).double() - weight.data.double() - change.double()).square().sum())
        whole += float(change.double().square().sum())
        weight.data = exact
    family.parts.load()
    with quiet(), whole_or_not(folder) as beside:
        family.pipeline(safety=True).to(FILE_DTYPES[dtype]).save_pretrained(beside)
        for_others(beside)
    return Merged(folder, (wrong / whole) ** 0.5 if whole else 0.0)


def base_sites(base: str) -> dict[str, tuple[int, ...]]:
    """canonical name -> weight shape of all that an adapter file may change, of a base whose weights are not read."""
    return adaptable_shapes(base, families.detect(base))


def write_file(
    modules: AdapterState, path: Path, layout: Literal["universal", "diffusers"], dtype: Dtype, about: About
) -> Path:
    """One safetensors file with its metadata; a universal one gets its sidecar beside it."""
    tensors = (
        layouts.universal(modules, FILE_DTYPES[dtype], about.family)
        if layout == "universal"
        else layouts.diffusers(modules, FILE_DTYPES[dtype])
    )
    if layout == "universal":  # first: where it fails, the file itself is not in the way of a second try
        weights.write_bytes(metadata.sidecar(about, path.stem).encode(), path.with_suffix(".json"))
    weights.write_tensors(tensors, path, metadata.make_metadata(about, modules, path.stem, tensors))
    return path


def write_peft_folder(modules: AdapterState, folder: Path, name: str, about: About) -> Path:
    """The PEFT directory, whole or not at all."""
    own = own_metadata(modules, name, about)
    with whole_or_not(folder) as beside:
        layouts.write_peft(modules, beside, {"format": "pt"} | own)
    return folder


def own_metadata(modules: AdapterState, name: str, about: About) -> dict[str, str]:
    """What each file of a PEFT directory says of the adapter. Raises RunError as `metadata.make_metadata`."""
    none: dict[str, Tensor] = {}  # the hash of one component's file would not be the other's
    return {k: v for k, v in metadata.make_metadata(about, modules, name, none).items() if k.startswith("finetune.")}


def _about(adapter: layouts.AdapterFile, base: str) -> About:
    ours = metadata.about(adapter.metadata)
    if ours:
        return ours.published()
    if not base:
        raise BaseError("the adapter does not say what base it was made for", "name it: `base`")
    facts = families.detect(base)
    told = {key: adapter.metadata.get(f"modelspec.{key}", "") for key in ("title", "license", "trigger_phrase")}
    return About.of(
        facts, base="" if reading.exists(Path(base)) else base,
        title=told["title"], license=told["license"], trigger=told["trigger_phrase"],
    ).published()  # fmt: skip


def read_back(modules: AdapterState, out: Path) -> AdapterState:
    """What a file or folder holds of these modules, which were written into it.

    Raises:
        VerifyError: it does not hold them all, or cannot be read whole.
    """
    again = layouts.read_adapter(out, list(modules) + [n for n in layouts.uniform(modules) if n not in modules])
    missing = [name for name in modules if name not in again.modules]
    if again.problems or missing:
        raise VerifyError(
            f"{out} was written wrong: {(*again.problems, *missing)[0]}", "this is a bug: please report it"
        )
    return {name: again.modules[name] for name in modules}


def _reopened(modules: AdapterState, out: Path, dtype: Dtype) -> float:
    """The worst relative difference between the modules and what `out` holds of them."""
    again = read_back(modules, out)
    worst = max(_differ(again[name], change) for name, change in modules.items())
    if worst > 10 * TOLERANCE[FILE_DTYPES[dtype]]:
        raise VerifyError(
            f"{out} differs from its source by {worst:.1e}, more than {dtype} explains", "export it as float32"
        )
    return worst


def _check_readers(modules: AdapterState, out: Path, readers: Collection[ReaderName]) -> None:
    """Raises VerifyError, and takes the file away again, when a program would not apply it as it says."""
    again = layouts.read_adapter(out, list(modules) + [n for n in layouts.uniform(modules) if n not in modules])
    reading_it = [reader.program for reader in readers_of(again.metadata.get("finetune.family", ""))]
    wrong = {r: again.misread.get(r, "") if r in reading_it else "it reads no adapters of this family" for r in readers}
    for program, why in wrong.items():
        if why:
            for written in (out, out.with_suffix(".json")):
                written.unlink(missing_ok=True)
            right = [TITLES[r] for r in reading_it if r not in again.misread]
            raise VerifyError(
                f"{TITLES[program]} would not read {out.name}: {why}", f"it is right in {', '.join(right)}"
            )


def _differ(one: Change, other: Change) -> float:
    """Of what two changes do to some weight of their shape."""
    weight = torch.randn(other.shape, generator=torch.Generator().manual_seed(0))
    return difference(one.delta(weight), other.delta(weight))


def for_others(folder: Path) -> None:
    """Take out of a pipeline's folder what only this machine understands.

    diffusers writes into every config where the base was, and transformers >= 5.6 names the text encoder's weights as
    older versions do not read them.
    """
    for encoder in folder.glob("text_encoder*/model.safetensors"):
        _text_model_names(encoder)
    for file in (*folder.glob("*.json"), *folder.glob("*/config.json")):
        config = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            weights.write_bytes(json.dumps(config, indent=2).encode(), file)


def _text_model_names(file: Path) -> None:
    """transformers < 5.6 fills a text encoder saved without `text_model.` with random weights, with but a warning."""
    if json.loads((file.parent / "config.json").read_text(encoding="utf-8")).get("model_type") != "clip_text_model":
        return
    tensors = weights.load_tensors(file)
    outside = ("text_model.", "text_projection.")
    named = {n if n.startswith(outside) else f"text_model.{n}": tensor for n, tensor in tensors.items()}
    if named.keys() != tensors.keys():
        weights.write_tensors(named, file, weights.read_header(file).metadata)
