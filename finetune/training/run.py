"""One training run, from a recipe to a proved file. Reads top to bottom as the procedure."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from finetune import families, optimizers, recipe
from finetune import resources as shipped
from finetune import tensors as weights
from finetune.adapters import attach as adapters
from finetune.adapters.lora import Modules, less, norm
from finetune.encoding import cache
from finetune.errors import RecipeError, RunError, TrainError, VerifyError
from finetune.evaluation import effect as evaluate
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
from finetune.families.base import Family, Prompt, checkpoint_gradients, large_encoders, save
from finetune.files import layouts
from finetune.files.metadata import About
from finetune.machine import DTYPES, Machine, open_machine
from finetune.planning import plan as planning
from finetune.planning.plan import Plan
from finetune.proof import export, outputs
from finetune.proof.verify import Report, is_large, misfits, verify
from finetune.recipe import Loaded
from finetune.sampling.session import Session
from finetune.training import batches, checkpoint, preflight
from finetune.training import folder as rundir
from finetune.training import loop as trainer
from finetune.training import samples as pictures
from finetune.training.loop import State, Step
from finetune.training.stop import Interruption, interruptible

Listen = Callable[[Event], None]
CPU = torch.device("cpu")


class Result(NamedTuple):
    path: Path
    """the proved file; for adapter.method = "full", the pipeline's folder"""
    sheet: Path
    report: Report | None
    learnt: evaluate.Learnt | None


def run(loaded: Loaded, out: Path, listen: Listen, resume: bool = False) -> Result:
    """Train what the recipe says into the folder `out`.

    Raises:
        FinetuneError: what is wrong and what to do; the newest checkpoint is kept.
    """
    with interruptible(out) as interrupted, preflight.shortage():
        plan = planning.settle(loaded, int(os.environ.get("WORLD_SIZE", "1")))
        machine = open_machine(plan.recipe.train.precision)
        tell = listen if machine.ranks.rank == 0 else (lambda _: None)
        rundir.open_folder(plan, out, resume, machine.ranks.rank == 0)
        tell(Note(describe(plan, machine)))
        family = open_base(plan)
        plan = dataclasses.replace(plan, facts=family.facts)
        made = encode(plan, family, machine, tell)
        identity = rundir.identify(plan, family)  # before attaching: of the base as it was
        family.parts.release(*large_encoders(family))
        state = attach(plan, family, machine)
        identity["trained parameters"] = rundir.shapes(state.trainable)
        if resume:
            restore(out, plan, state, identity, tell)
        if machine.ranks.rank != 0:
            loop(plan, family, state, made, machine, out, identity, tell, interrupted)
            return Result(out, out, None, None)
        rundir.write_run(out, plan, identity, "running")
        with rundir.outcome_noted(out):
            loop(plan, family, state, made, machine, out, identity, tell, interrupted)
            with trainer.averaged(state):
                return finish(plan, family, state, made, machine, out, identity, tell)


def describe(plan: Plan, machine: Machine) -> str:
    facts, config = plan.facts, plan.recipe
    cpu = f"CPU, {torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name() if machine.device.type == "cuda" else cpu
    return f"{config.base}: {facts.described()}; {config.train.precision} on {device}"


class Made(NamedTuple):
    """What the frozen encoders made of the dataset."""

    latents: evaluate.Latents
    batches: batches.Batches
    captions: cache.Captions


def encode(plan: Plan, family: Family, machine: Machine, tell: Listen) -> Made:
    """Images, and captions by each text encoder that is not trained, from the cache or now; then the encoders leave the
    device.

    Raises:
        RunError: the cache cannot be written.
    """
    store = cache.Store(plan.recipe.data.cache or cache.default_root())
    wanted = machine.ranks.turned(batches.wanted(plan))
    frozen = [encoder for encoder in family.encoders if encoder not in plan.recipe.adapter.components]
    shown = [*batches.prompts(plan), *(outputs.PROMPTS if large_encoders(family) else ())]
    prompts = machine.ranks.turned(list({prompt.key: prompt for prompt in shown}.values())) if frozen else []
    tell(Stage("encoding images", len(wanted)))
    family.parts.load("vae").to(machine.device, "vae")
    latents = cache.encode_images(store, family, wanted, machine.device, lambda n: tell(Advanced(n)))
    texts = {}
    for encoder in frozen:
        tell(Stage(f"encoding captions, {encoder}" if len(frozen) > 1 else "encoding captions", len(prompts)))
        family.parts.load(encoder).to(machine.device, encoder)
        texts[encoder] = cache.encode_texts(store, family, encoder, prompts, lambda n: tell(Advanced(n)))
        family.parts.to(CPU, encoder)
    family.parts.to(CPU, "vae")
    tell(Note(f"cache: {store.hits} found, {store.misses} encoded, in {store.root}"))
    known = cache.Captions(family, texts, machine.device)
    return Made(latents, batches.Batches(plan, family, latents, known), known)


def attach(plan: Plan, family: Family, machine: Machine) -> State:
    """The adapter in the model, the model on the device, an optimizer over what is trained."""
    config = plan.recipe
    names = adapters.component_names(config.adapter, family.denoiser_name)
    trained = {name: family.parts[name] for name in names}
    adapters.check_ranks(trained, family.presets, config.adapter)
    trainable = adapters.attach(trained, family.presets, config.adapter, config.train.seed)
    adapters.start_from(trained, start_of(plan, family))
    used = dict.fromkeys([family.denoiser_name, *names])
    for component in used:
        family.parts[component].to(machine.device)
    for component in names:
        family.parts[component].train()
    if config.train.gradient_checkpointing:
        checkpoint_gradients(family, used)
    if config.train.compile:
        # what torch.compile makes is kept between runs
        root = config.data.cache or cache.default_root()
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "inductor"))
        family.parts.compile(family.denoiser_name)
    rates = optimizers.rates(config.optimizer, list(trainable))
    optimizer = optimizers.build(config.optimizer, [(c, list(p.values()), rates[c]) for c, p in trainable.items()])
    state = State(trainable, optimizer, machine.scaler)
    if config.train.ema:
        state.mean = [p.detach().clone() for p in state.parameters]
    return state


def start_of(plan: Plan, family: Family) -> Modules:
    """What adapter.init_from holds; nothing without it.

    Raises:
        RecipeError: it cannot be read whole for this base.
    """
    path = plan.recipe.adapter.init_from
    if path is None:
        return {}
    places = export.base_sites(plan.recipe.base)
    found = layouts.read(path, places, family.name)
    problems = [*found.problems, *misfits(found.modules, places)]
    if problems or not found.modules:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RecipeError(
            f"adapter.init_from: {path.name}: {(problems or ['it holds no changes'])[0]}{more}",
            f"finetune verify {path} --base {plan.recipe.base}",
        )
    # readers' sake puts zero changes into files of ours
    return {name: change for name, change in found.modules.items() if norm(change)}


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


def open_base(plan: Plan) -> Family:
    """The base as it is trained: in the run's precision, its times drawn as the recipe says."""
    return families.load(
        plan.recipe.base, DTYPES[plan.recipe.train.precision], plan.facts, plan.recipe.objective,
        plan.recipe.data.text_encoder_bits, plan.recipe.train.base_bits,
    )  # fmt: skip


def measure(plan: Plan) -> preflight.Measured:
    """One real step at the largest bucket, for `plan --measure`: nothing is written but the cache."""
    machine = open_machine(plan.recipe.train.precision)
    family = open_base(plan)
    made = encode(plan, family, machine, lambda _: None)
    family.parts.release(*large_encoders(family))
    return preflight.measure(family, attach(plan, family, machine), plan, made.batches, machine.autocast)


def loop(
    plan: Plan, family: Family, state: State, made: Made, machine: Machine, out: Path, identity: dict[str, str],
    tell: Listen, interrupted: Interruption,
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
                    with trainer.averaged(state):
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
        found = evaluate.losses(plan.held_out, made.latents, made.captions, machine.autocast)
        tell(Validated(step, found.mean, found.bands))
    if config.sample.every and step % config.sample.every == 0:
        folder = out / "samples" / f"step-{step:06d}"
        family.parts.to(machine.device, "vae")
        drawn = pictures.draw(plan, Session(family, made.captions, machine.device, machine.autocast))
        family.parts.to(CPU, "vae")
        tell(Sampled(step, tuple(pictures.write(plan, drawn, folder, {"step": str(step)}))))


def finish(
    plan: Plan, family: Family, state: State, made: Made, machine: Machine, out: Path, identity: dict[str, str],
    tell: Listen,
) -> Result:  # fmt: skip
    """Measure the change, write the file, open it again in a fresh base, and prove it."""
    config, name = plan.recipe, plan.recipe.name or out.resolve().name
    tell(Stage("proving", 0))
    learnt = None
    if config.adapter.method == "lora":
        learnt = judge(plan, family, made, machine, tell)
        live = adapters.read(family.parts.loaded())
        adapters.check_read(state.trainable, live)
        large = is_large(export.base_sites(config.base))
        precision, bits = DTYPES[config.train.precision], config.train.base_bits
        trained = outputs.reference(family, made.captions.known, precision, bits, large)
        family.parts.release(*family.parts)
        result = export_adapter(plan, live, trained, out, name, identity, learnt, tell)
    else:
        family.parts.to(CPU)
        result = export_pipeline(plan, family, out, name, tell)
    rundir.write_run(out, plan, identity, "done")
    tell(Finished(state.step, "done", result.path))
    return result


def judge(plan: Plan, family: Family, made: Made, machine: Machine, tell: Listen) -> evaluate.Learnt:
    """How far weights and output moved, and how much better the training images are predicted.

    Raises:
        TrainError: nothing measurable changed.
    """
    parts = family.parts.loaded()
    live, before, start = adapters.read(parts), adapters.base_squares(parts), start_of(plan, family)
    for component in sorted({n.partition(".")[0] for n in live}):
        own = {n: c for n, c in live.items() if n.startswith(f"{component}.")}
        part = {n: less(c, start[n]) if n in start else c for n, c in own.items()}
        moved = evaluate.relative_change(before, part)
        tell(Note(f"{component}: weights moved by {moved:.2%} in {len(part)} modules"))
        if moved < evaluate.NO_EFFECT:
            raise TrainError(
                f"training had no measurable effect on the {component}: its weights moved by {moved:.1e} of their size",
                "raise optimizer.learning_rate or train.steps",
            )
    prompts = [Prompt.of(p.example) for p in plan.train.placed]
    shape = tuple(next(iter(made.latents.values())).mean.shape)
    output = evaluate.output_change(prompts, shape, made.captions, machine.autocast)
    if output < evaluate.NO_EFFECT:
        raise TrainError(
            f"training had no measurable effect: the prediction changed by {output:.1e}",
            "raise optimizer.learning_rate",
        )
    learnt = evaluate.learnt(plan.train.placed, made.latents, made.captions, machine.autocast)
    losses = f"loss on the training images {learnt.base:.4f} -> {learnt.adapted:.4f}"
    tell(Note(f"prediction changed by {output:.1%}; {losses}"))
    for doubt in learnt.doubts():
        tell(Warned(doubt))
    return learnt


def export_adapter(
    plan: Plan, live: Modules, trained: outputs.Reference, out: Path, name: str, identity: dict[str, str],
    learnt: evaluate.Learnt, tell: Listen,
) -> Result:  # fmt: skip
    """Write every layout, verify each in a fresh base, and draw the final sheet from the file itself."""
    wanted = {"universal", *plan.recipe.export.layouts}
    exported = export.export(
        live, out / "adapter", name, wanted, plan.recipe.export.dtype, about(plan, name, identity), plan.recipe.base
    )
    report, bits = None, plan.recipe.train.base_bits
    if bits and not is_large(export.base_sites(plan.recipe.base)):
        bits = None  # in full a file is proved by the outputs as well
    for file in (exported.diffusers, exported.universal):
        if file is not None:
            report = verify(file, plan.recipe.base, live, bits, trained)
            _refuse(report, out)
    assert report is not None and exported.universal is not None
    rounded = ", the base's rounding to bfloat16 included" if report.stock_output is None else ""
    differs = f"differs from the trained model's outputs by {report.outputs or 0:.1e} of the change{rounded}"
    tell(Note(f"verified: opened in a fresh base, {report.hit} of {report.expected} modules found, {differs}"))
    if exported.merged:
        tell(Note(f"merged: rounding to {plan.recipe.export.dtype} lost {exported.merged.lost:.2%} of the change"))
    sheet = final_sheet(plan, exported.universal, out)
    tell(Sampled(plan.steps, (sheet,)))
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
    save(family, folder, dtype)
    export.for_others(folder)
    base, again = families.load(plan.recipe.base), families.load(str(folder))
    for component in adapters.component_names(plan.recipe.adapter, family.denoiser_name):
        written = {n: p.to(dtype).float() for n, p in family.parts[component].state_dict().items()}
        if evaluate.distance(again.parts[component].state_dict(), written) != 0:
            raise VerifyError(f"{folder / component} does not read back as written", "is the disk sound?")
        moved = evaluate.distance(base.parts[component].state_dict(), again.parts[component].state_dict())
        tell(Note(f"{component}: weights moved by {moved:.2%}"))
        if moved < evaluate.NO_EFFECT:
            raise TrainError(f"training had no measurable effect on the {component}", "raise optimizer.learning_rate")
    tell(Note(f"written and read back equal: {folder}"))
    sessions = {label: Session.of(one, pictures.prompts(plan), CPU) for label, one in (("base", base), (name, again))}
    rows = [(label, pictures.draw(plan, session)) for label, session in sessions.items()]
    sheet = pictures.write_sheet(plan, rows, out, {})
    tell(Sampled(plan.steps, (sheet,)))
    return Result(folder, sheet, None, None)


def final_sheet(plan: Plan, file: Path, out: Path) -> Path:
    """Base row and adapter row at the same seeds, the adapter read from its file by stock diffusers."""
    session = Session.of(open_base(plan), pictures.prompts(plan))
    rows = [("base", pictures.draw(plan, session))]
    session.load_by_diffusers(file)
    rows.append((file.stem, pictures.draw(plan, session)))
    facts = {"adapter": file.name, "adapter_sha256": weights.file_sha256(file)}
    return pictures.write_sheet(plan, rows, out, facts)


def about(plan: Plan, name: str, identity: dict[str, str]) -> About:
    """What the exported file says of itself; no path of this machine."""
    data, config = plan.data, plan.recipe
    public = recipe.replace(config, data__path=Path(data.root.name), data__cache=None)
    if config.prior.path:
        public = recipe.replace(public, prior__path=Path(config.prior.path.name))
    if config.adapter.init_from:
        public = recipe.replace(public, adapter__init_from=Path(config.adapter.init_from.name))
    public = recipe.replace(public, base=shipped.public_name(config.base))
    return About.of(
        plan.facts, config.data.resolution or 0, base=public.base, base_fingerprint=identity["base"],
        trigger=data.trigger or "", title=config.export.title or name, license=config.export.license,
        recipe=recipe.dumps(public), steps=plan.steps, dataset_fingerprint=data.fingerprint,
        dataset_images=len(plan.train.placed), dataset_license=data.license, parent=identity.get("start", ""),
    )  # fmt: skip


def stepped(step: Step, steps: int) -> Stepped:
    return Stepped(
        step.number, steps, step.loss, step.prior_loss, step.grad_norm, step.rates, step.seconds, step.skipped
    )
