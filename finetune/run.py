"""One training run, from a recipe to a proved file. Reads top to bottom as the procedure."""

import dataclasses
import json
import os
import platform
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from finetune import (
    __version__,
    adapters,
    batches,
    cache,
    checkpoint,
    evaluate,
    export,
    families,
    optimizers,
    preflight,
    recipe,
    sampler,
    trainer,
    weights,
)
from finetune import plan as planning
from finetune.adapters import Trainable
from finetune.errors import FinetuneError, Interrupted, RunError, TrainError, VerifyError
from finetune.events import (
    Advanced,
    Event,
    Finished,
    Note,
    Resumed,
    Sampled,
    Saved,
    Stage,
    Stepped,
    Validated,
    Warned,
)  # fmt: skip
from finetune.families.base import Family
from finetune.lora import Modules
from finetune.metadata import About
from finetune.plan import Plan
from finetune.recipe import Loaded, Recipe
from finetune.trainer import Autocast, Ranks, State, Step
from finetune.verify import Report, verify

Listen = Callable[[Event], None]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAY_CHANGE = (
    "name", "train.steps", "train.epochs", "train.checkpoint_every", "train.keep_last", "train.patience",
    "train.compile", "validation.every",
)  # fmt: skip
"""recipe keys a resumed run may change, beside sample and export"""
_NOT_COMPARED = ("sample.", "export.", "data.path", "data.cache", "base", "prior.path")
"""free to change, or compared by content"""
_SURPLUS_BYTES = 64 << 20


class Result(NamedTuple):
    path: Path
    """the proved file; for adapter.method = "full", the pipeline's folder"""
    sheet: Path
    report: Report | None
    learnt: evaluate.Learnt | None


class Machine(NamedTuple):
    """Where the run computes."""

    device: torch.device
    ranks: Ranks
    autocast: Autocast
    scaler: torch.amp.GradScaler | None


def run(loaded: Loaded, out: Path, listen: Listen, resume: bool = False) -> Result:
    """Train what the recipe says into the folder `out`.

    Raises:
        FinetuneError: what is wrong and what to do; the newest checkpoint is kept.
    """
    with interruptible(out) as interrupted, preflight.shortage():
        plan = planning.settle(loaded, int(os.environ.get("WORLD_SIZE", "1")))
        machine = open_machine(plan.recipe.train.precision)
        tell = listen if machine.ranks.rank == 0 else (lambda _: None)
        open_folder(plan, out, resume, machine.ranks.rank == 0)
        tell(Note(describe(plan, machine)))
        family = families.load(plan.recipe.base, DTYPES[plan.recipe.train.precision], plan.facts)
        plan = dataclasses.replace(plan, facts=family.facts)
        made = encode(plan, family, machine, tell)
        identity = identify(plan, family)
        state = attach(plan, family, machine, identity)
        if resume:
            restore(out, plan, state, identity, tell)
        if machine.ranks.rank == 0:
            write_run(out, plan, identity, "running")
            interrupted.owns_folder = True
        loop(plan, family, state, made, machine, out, identity, tell, interrupted)
        if machine.ranks.rank != 0:
            return Result(out, out, None, None)
        return finish(plan, family, state, made, machine, out, identity, tell)


def open_machine(precision: str) -> Machine:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=False)  # a second run in this process may differ
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    accelerator = Accelerator(mixed_precision=mixed, cpu=not torch.cuda.is_available())
    ranks = Ranks(accelerator.process_index, accelerator.num_processes)
    return Machine(accelerator.device, ranks, accelerator.autocast, accelerator.scaler)


def open_folder(plan: Plan, out: Path, resume: bool, main: bool) -> None:
    """Refuse a folder that holds a run (or, to resume, that holds none), or a disk without room.

    The log alone is what a run leaves that ended before its first step: such a folder counts as empty.

    Raises:
        RunError: says which, and what to do.
    """
    holds_run = (out / "run.json").exists() or (out / "checkpoints").exists()
    if resume and not holds_run:
        raise RunError(f"{out} holds no run to resume", "leave out --resume, or check the path")
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file, not a folder", "another --out")
    if not resume and out.exists() and any(path.name != "events.jsonl" for path in out.iterdir()) and main:
        what = "holds a run already" if holds_run else "is not empty"
        hint = f"--resume to go on with it, or another --out, such as {out}-2" if holds_run else "another --out"
        raise RunError(f"{out} {what}", hint)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if main:
            _reserve(out, _bytes_needed(plan))
    except OSError as e:
        raise RunError(f"cannot write into {out}: {e.strerror}", "another --out, or free some space") from e


def describe(plan: Plan, machine: Machine) -> str:
    facts, config = plan.facts, plan.recipe
    cpu = f"CPU, {torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name() if machine.device.type == "cuda" else cpu
    return (
        f"{config.base}: {facts.family} ({facts.variant}), predicts {facts.prediction}"
        f"{', zero terminal SNR' if facts.zero_snr else ''}; {config.train.precision} on {device}"
    )


class Made(NamedTuple):
    """What the frozen encoders made of the dataset."""

    latents: evaluate.Latents
    batches: batches.Batches


def encode(plan: Plan, family: Family, machine: Machine, tell: Listen) -> Made:
    """Images, and captions unless their encoder is trained, from the cache or now; then the encoders leave the device.

    Raises:
        RunError: the cache cannot be written.
    """
    store = cache.Store(plan.recipe.data.cache or cache.default_root())
    wanted = batches.wanted(plan)
    captions = [] if "text_encoder" in plan.recipe.adapter.components else batches.captions(plan)
    tell(Stage("encoding images", len(wanted)))
    family.to(machine.device, "vae", "text_encoder")
    latents = cache.encode_images(store, family, wanted, machine.device, lambda n: tell(Advanced(n)))
    tell(Stage("encoding captions", len(captions)))
    texts = cache.encode_texts(store, family, captions, lambda n: tell(Advanced(n)))
    tell(Note(f"cache: {store.hits} found, {store.misses} encoded, in {store.root}"))
    family.to(torch.device("cpu"), "vae", "text_encoder")
    return Made(latents, batches.Batches(plan, family, latents, texts, machine.device))


def attach(plan: Plan, family: Family, machine: Machine, identity: dict[str, str]) -> State:
    """The adapter in the model, the model on the device, an optimizer over what is trained."""
    config = plan.recipe
    names = adapters.component_names(config.adapter, family.denoiser_name)
    adapters.check_ranks({n: family.components[n] for n in names}, family.presets, config.adapter)
    trainable = adapters.attach(
        family.components, family.presets, config.adapter, family.denoiser_name, config.train.seed
    )
    family.to(machine.device, family.denoiser_name, *trainable)
    for component in trainable:
        family.components[component].train()
    if config.train.gradient_checkpointing:
        family.checkpoint_gradients()
    if config.train.compile:
        compile_cache(config)
        family.compile()
    rates = optimizers.rates(config.optimizer, list(trainable))
    optimizer = optimizers.build(config.optimizer, [(c, list(p.values()), rates[c]) for c, p in trainable.items()])
    identity["trained parameters"] = _shapes(trainable)
    return State(trainable, optimizer, machine.scaler)


def compile_cache(config: Recipe) -> None:
    """Keep what torch.compile makes between runs."""
    root = config.data.cache or cache.default_root()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "inductor"))


def restore(out: Path, plan: Plan, state: State, identity: dict[str, str], tell: Listen) -> None:
    """Put the newest whole checkpoint back; without one, start from step 0.

    Raises:
        RunError: the run was another one, or has more steps behind it than the recipe asks for.
    """
    found, damage = checkpoint.newest(out / "checkpoints")
    for sentence in damage:
        tell(Warned(f"checkpoint left aside: {sentence}"))
    if found is None:
        if damage:
            raise RunError(f"{out}: no whole checkpoint is left ({damage[0]})", "start again with another --out")
        tell(Note("no checkpoint yet: starting at step 0"))
        return
    changed = checkpoint.differences(found.identity, identity)
    if changed:
        raise RunError(
            f"{out} cannot be resumed: it was another run\n  " + "\n  ".join(changed),
            f"finetune train {out / 'recipe.toml'} --out {out} --resume",
        )
    if found.step > plan.steps:
        raise RunError(
            f"train.steps = {plan.steps}, and {found.step} steps are done: {found.path}",
            f"train.steps = {found.step} or more, or another --out",
        )
    checkpoint.load(found, state)
    tell(Resumed(state.step, found.path))


def measure(plan: Plan) -> preflight.Measured:
    """One real step at the largest bucket, for `plan --measure`: nothing is written but the cache."""
    machine = open_machine(plan.recipe.train.precision)
    family = families.load(plan.recipe.base, DTYPES[plan.recipe.train.precision], plan.facts)
    made = encode(plan, family, machine, lambda _: None)
    return preflight.measure(family, attach(plan, family, machine, {}), plan, made.batches, machine.autocast)


def loop(
    plan: Plan, family: Family, state: State, made: Made, machine: Machine, out: Path, identity: dict[str, str],
    tell: Listen, interrupted: "Interruption",
) -> None:  # fmt: skip
    """Train to the last step; save, then validate and sample, as the recipe says."""
    config = plan.recipe
    main, saved = machine.ranks.rank == 0, state.step
    if state.step < plan.steps:
        measured = preflight.measure(family, state, plan, made.batches, machine.autocast)
        tell(Note(f"pre-flight: loss {measured.loss:.4f}, {measured.seconds:.2f} s a step at the largest bucket, "
                  f"peak memory {measured.peak_bytes / 2**30:.2f} GiB"))  # fmt: skip
    if main and state.step == 0:
        observe(plan, family, made, machine, out, 0, tell)
    tell(Stage("training", plan.steps))

    def save() -> None:
        nonlocal saved
        if not main or saved == state.step:
            return
        try:
            path = checkpoint.save(out / "checkpoints", state, identity, config.train.keep_last)
        except OSError as e:
            raise RunError(
                f"cannot save step {state.step} in {out}: {e.strerror}",
                f"free some space, then {interrupted.resume_command()}",
            ) from e
        saved = state.step
        tell(Saved(saved, path))

    with interrupted.deferred(), preflight.shortage(lambda: f"at step {state.step + 1}"):
        for step in trainer.train(family, state, plan, made.batches, machine.ranks, machine.autocast):
            tell(stepped(step, plan.steps))
            due = step.number % config.train.checkpoint_every == 0 or step.number == plan.steps
            if (due and state.bad_steps == 0) or interrupted.asked:
                save()
            if interrupted.asked:
                raise interrupted.error(state.step)
            if main:
                try:
                    observe(plan, family, made, machine, out, step.number, tell)
                except BaseException:
                    save()  # looking at the model must not cost what it learnt
                    raise
        if interrupted.asked:
            save()
            raise interrupted.error(state.step)


def observe(plan: Plan, family: Family, made: Made, machine: Machine, out: Path, step: int, tell: Listen) -> None:
    """Held-out losses and samples that are due at this step. Changes nothing."""
    config = plan.recipe
    if plan.held_out and step % config.validation.every == 0:
        found = evaluate.losses(family, plan.held_out, made.latents, machine.device, machine.autocast)
        tell(Validated(step, found.mean, found.bands))
    if config.sample.every and step % config.sample.every == 0:
        folder = out / "samples" / f"step-{step:06d}"
        family.to(machine.device, "vae", "text_encoder")
        pictures = draw_samples(plan, family, family.pipeline(), machine)
        family.to(torch.device("cpu"), "vae")
        if "text_encoder" not in adapters.component_names(config.adapter, family.denoiser_name):
            family.to(torch.device("cpu"), "text_encoder")
        tell(Sampled(step, tuple(write_samples(plan, pictures, folder, {"step": str(step)}))))


def finish(
    plan: Plan, family: Family, state: State, made: Made, machine: Machine, out: Path, identity: dict[str, str],
    tell: Listen,
) -> Result:  # fmt: skip
    """Measure the change, write the file, open it again in a fresh base, and prove it."""
    config, name = plan.recipe, plan.recipe.name or out.resolve().name
    family.to(machine.device, "text_encoder")
    learnt = None
    if config.adapter.method == "lora":
        learnt = judge(plan, family, made, machine, tell)
        live = adapters.read(family.components)
        family.to(torch.device("cpu"))
        result = export_adapter(plan, live, out, name, identity, learnt, tell)
    else:
        family.to(torch.device("cpu"))
        result = export_pipeline(plan, family, out, name, tell)
    write_run(out, plan, identity, "done")
    tell(Finished(state.step, "done", result.path))
    return result


def judge(plan: Plan, family: Family, made: Made, machine: Machine, tell: Listen) -> evaluate.Learnt:
    """How far weights and output moved, and how much better the training images are predicted.

    Raises:
        TrainError: nothing measurable changed.
    """
    live, before = adapters.read(family.components), adapters.base_weights(family.components)
    for component in sorted({n.partition(".")[0] for n in live}):
        part = {n: c for n, c in live.items() if n.startswith(f"{component}.")}
        moved = evaluate.relative_change(before, part)
        tell(Note(f"{component}: weights moved by {moved:.2%} in {len(part)} modules"))
        if moved < evaluate.NO_EFFECT:
            raise TrainError(
                f"training had no measurable effect on the {component}: its weights moved by {moved:.1e} of their size",
                "raise optimizer.learning_rate or train.steps",
            )
    captions = [p.example.caption for p in plan.train.placed]
    shape = tuple(next(iter(made.latents.values())).mean.shape)
    output = evaluate.output_change(family, captions, shape, machine.device, machine.autocast)  # type: ignore[arg-type]
    if output < evaluate.NO_EFFECT:
        raise TrainError(
            f"training had no measurable effect: the prediction changed by {output:.1e}",
            "raise optimizer.learning_rate",
        )
    learnt = evaluate.learnt(family, plan.train.placed, made.latents, machine.device, machine.autocast)
    losses = f"loss on the training images {learnt.base:.4f} -> {learnt.adapted:.4f}"
    tell(Note(f"prediction changed by {output:.1%}; {losses}"))
    for doubt in learnt.doubts():
        tell(Warned(doubt))
    return learnt


def export_adapter(
    plan: Plan, live: Modules, out: Path, name: str, identity: dict[str, str], learnt: evaluate.Learnt, tell: Listen
) -> Result:
    """Write every layout, verify each in a fresh base, and draw the final sheet from the file itself."""
    wanted = {"universal", *plan.recipe.export.layouts}
    exported = export.export(
        live, out / "adapter", name, wanted, plan.recipe.export.dtype, about(plan, name, identity), plan.recipe.base
    )
    report = None
    for file in (exported.diffusers, exported.universal):
        if file is not None:
            report = verify(file, plan.recipe.base, live)
            _refuse(report, out)
    assert report is not None and exported.universal is not None
    differs = f", differs from the live model by {report.live:.1e}" if report.live is not None else ""
    tell(Note(f"verified: opened in a fresh base, {report.hit} of {report.expected} modules found{differs}"))
    if exported.merged:
        tell(Note(f"merged: rounding to {plan.recipe.export.dtype} lost {exported.merged.lost:.2%} of the change"))
    sheet = final_sheet(plan, exported.universal, out, tell)
    return Result(exported.universal, sheet, report, learnt)


def _refuse(report: Report, out: Path) -> None:
    if not report.ok:
        raise VerifyError(
            f"{report.file} does not do what was trained: {report.problems[0]}",
            f"the trained weights are safe in {out / 'adapter' / 'peft'}; please report this",
        )


def export_pipeline(plan: Plan, family: Family, out: Path, name: str, tell: Listen) -> Result:
    """Save the trained base as a pipeline, open it again, and compare."""
    folder = out / "adapter" / name
    dtype = export.DTYPES[plan.recipe.export.dtype]
    family.save(folder, dtype)
    base, again = families.load(plan.recipe.base), families.load(str(folder))
    for component in adapters.component_names(plan.recipe.adapter, family.denoiser_name):
        written = {n: p.to(dtype).float() for n, p in family.components[component].state_dict().items()}
        if evaluate.distance(again.components[component].state_dict(), written) != 0:
            raise VerifyError(f"{folder / component} does not read back as written", "is the disk sound?")
        moved = evaluate.distance(base.components[component].state_dict(), again.components[component].state_dict())
        tell(Note(f"{component}: weights moved by {moved:.2%}"))
        if moved < evaluate.NO_EFFECT:
            raise TrainError(f"training had no measurable effect on the {component}", "raise optimizer.learning_rate")
    tell(Note(f"written and read back equal: {folder}"))
    cpu = Machine(torch.device("cpu"), Ranks(), nullcontext, None)
    rows = [(label, draw_samples(plan, f, f.pipeline(), cpu)) for label, f in (("base", base), (name, again))]
    return Result(folder, _write_sheet(plan, rows, out, {}, tell), None, None)


def final_sheet(plan: Plan, file: Path, out: Path, tell: Listen) -> Path:
    """Base row and adapter row at the same seeds, the adapter read from its file by stock diffusers."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = Machine(device, Ranks(), nullcontext, None)
    family = families.load(plan.recipe.base)
    family.to(device)
    pipeline = family.pipeline()
    rows = [("base", draw_samples(plan, family, pipeline, machine))]
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    rows.append((file.stem, draw_samples(plan, family, pipeline, machine)))
    return _write_sheet(plan, rows, out, {"adapter": file.name, "adapter_sha256": weights.file_sha256(file)}, tell)


def draw_samples(plan: Plan, family: Family, pipeline: Any, machine: Machine) -> list[sampler.Picture]:
    return [sampler.render(family, pipeline, shot, machine.device, machine.autocast) for shot in shots(plan)]


def shots(plan: Plan) -> list[sampler.Shot]:
    """The recipe's prompts, each with its own seed, the same for the whole run."""
    wanted, side = plan.recipe.sample, plan.recipe.data.resolution
    assert side is not None
    side = side // plan.facts.stride * plan.facts.stride
    return [
        sampler.Shot(prompt, wanted.seed + i, wanted.negative, wanted.steps, wanted.guidance, side, side)
        for i, prompt in enumerate(wanted.prompts)
    ]


def write_samples(plan: Plan, pictures: list[sampler.Picture], folder: Path, facts: dict[str, str]) -> list[Path]:
    paths = []
    facts = {"base": sampler.public_name(plan.recipe.base), **facts}
    for i, (shot, picture) in enumerate(zip(shots(plan), pictures, strict=True)):
        path = folder / f"{i:02d}.png"
        sampler.write_png(picture.image, path, {**shot.described(), **facts})
        paths.append(path)
    return paths


def about(plan: Plan, name: str, identity: dict[str, str]) -> About:
    """What the exported file says of itself; no path of this machine."""
    data, config = plan.data, plan.recipe
    public = recipe.replace(config, data__path=Path(data.root.name), data__cache=None)
    if config.prior.path:
        public = recipe.replace(public, prior__path=Path(config.prior.path.name))
    if Path(config.base).exists():
        public = recipe.replace(public, base=Path(config.base).name)
    return About(
        variant=plan.facts.variant, prediction=plan.facts.prediction,
        resolution=config.data.resolution or plan.facts.resolution, base=public.base, base_fingerprint=identity["base"],
        trigger=data.trigger or "", title=config.export.title or name, license=config.export.license,
        recipe=recipe.dumps(public), steps=plan.steps, dataset_fingerprint=data.fingerprint,
        dataset_images=len(plan.train.placed), dataset_license=data.license,
    )  # fmt: skip


def identify(plan: Plan, family: Family) -> dict[str, str]:
    """What must be the same for a run to be resumed, each in words that fit an error message."""
    parts = [family.fingerprint(part) for part in ("vae", "text_encoder", family.denoiser_name)]
    identity = {"base": weights.digest("".join(parts)), "dataset": plan.data.fingerprint[:16]}
    if plan.prior:
        identity["prior images"] = weights.digest("".join(p.example.digest for p in plan.prior.placed))
    for key in recipe.keys():
        if key not in MAY_CHANGE and not key.startswith(_NOT_COMPARED):
            identity[key] = str(recipe.value(plan.recipe, key))
    return identity


def write_run(out: Path, plan: Plan, identity: dict[str, str], outcome: str) -> None:
    """recipe.toml, which repeats the run, and run.json: versions, fingerprints, hardware, outcome."""
    content = {
        "outcome": outcome,
        "finetune": __version__,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "steps": plan.steps,
        "identity": identity,
        "versions": {p: version(p) for p in ("torch", "diffusers", "transformers", "peft", "accelerate")},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
    }
    weights.write_bytes(recipe.dumps(plan.recipe).encode(), out / "recipe.toml")
    weights.write_bytes(json.dumps(content, indent=1).encode(), out / "run.json")


def stepped(step: Step, steps: int) -> Stepped:
    return Stepped(
        step.number, steps, step.loss, step.prior_loss, step.grad_norm, step.rates, step.seconds, step.skipped
    )


class Interruption:
    """SIGINT and SIGTERM: at once outside the loop, after the current step inside; a second one is always at once."""

    def __init__(self, out: Path) -> None:
        self.out, self.asked, self.owns_folder, self._waits = out, False, False, False

    def error(self, step: int) -> Interrupted:
        return Interrupted(f"stopped after step {step}; the state is saved", self.resume_command())

    def resume_command(self) -> str:
        return shlex.join(["finetune", "train", str(self.out / "recipe.toml"), "--out", str(self.out), "--resume"])

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def heard(self, *_: object) -> None:
        if self._waits and not self.asked:
            self.asked = True
            return
        saved, begun = (self.out / "checkpoints").exists(), (self.out / "run.json").exists()
        raise Interrupted(
            "stopped" if saved else "stopped before the first checkpoint; encoded images stay cached",
            self.resume_command() if begun else "the same command again",
        )


@contextmanager
def interruptible(out: Path) -> Iterator[Interruption]:
    """Handles signals while inside, in the main thread; elsewhere they stay as they are."""
    interruption = Interruption(out)
    kept: dict[int, Any] = {}
    try:
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            kept[number] = signal.signal(number, interruption.heard)
    except ValueError:  # not the main thread
        pass
    try:
        yield interruption
    except FinetuneError as e:
        if interruption.owns_folder:
            _note_outcome(out, str(e))
        raise
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _note_outcome(out: Path, outcome: str) -> None:
    path = out / "run.json"
    if path.is_file():
        content = json.loads(path.read_text())
        weights.write_bytes(json.dumps({**content, "outcome": outcome}, indent=1).encode(), path)


def _write_sheet(
    plan: Plan, rows: list[tuple[str, list[sampler.Picture]]], out: Path, facts: dict[str, str], tell: Listen
) -> Path:
    path = out / "sheet.png"
    page = sampler.sheet([(label, [p.image for p in pictures]) for label, pictures in rows], plan.recipe.sample.prompts)
    base = sampler.public_name(plan.recipe.base)
    sampler.write_png(page, path, {"prompt": " | ".join(plan.recipe.sample.prompts), "base": base, **facts})
    for label, pictures in rows:
        write_samples(plan, pictures, out / "samples" / f"final-{label}", facts if label != "base" else {})
    tell(Sampled(plan.steps, (path,)))
    return path


def _bytes_needed(plan: Plan) -> int:
    """Checkpoints, one more while it is written, and the exported files."""
    rows = planning.components(plan)
    trained = sum(4 * c.trainable for c in rows)
    state = trained + sum(c.optimizer_bytes for c in rows)
    whole = plan.recipe.adapter.method == "full" or "merged" in plan.recipe.export.layouts
    pipeline = 2 * sum(4 * c.parameters for c in rows) if whole else 0
    return state * (plan.recipe.train.keep_last + 1) + 3 * trained + pipeline + _SURPLUS_BYTES


def _reserve(out: Path, needed: int) -> None:
    """Ask the disk for that much, and give it back. Raises OSError when it says no."""
    free = shutil.disk_usage(out).free
    if free < needed:
        raise OSError(28, f"{needed / 2**30:.2f} GiB needed, {free / 2**30:.2f} GiB free")
    probe = out / f".room.{os.getpid()}"
    try:
        with probe.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, needed)
            else:
                file.write(b"room")
    finally:
        probe.unlink(missing_ok=True)


def _shapes(trainable: Trainable) -> str:
    text = "\n".join(f"{c}.{n} {tuple(p.shape)}" for c, ps in trainable.items() for n, p in ps.items())
    return f"{sum(map(len, trainable.values()))} tensors, {weights.digest(text)}"
