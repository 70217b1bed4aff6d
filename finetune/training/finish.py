"""The end of a run: what training changed is measured, the file written, opened again in a fresh base, and proved."""

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from finetune import families, recipe
from finetune import tensors as weights
from finetune.adapters import attach as adapters
from finetune.adapters.change import AdapterState
from finetune.errors import RunError, TrainError, VerifyError
from finetune.evaluation import effect as evaluate
from finetune.evaluation.held_out import held_out_scores
from finetune.events import (
    Event,
    Finished,
    Note,
    Sampled,
    Score,
    Stage,
    TrainingEffect,
    Verified,
    Warned,
    WeightsChanged,
)
from finetune.families.base import save
from finetune.files.metadata import About
from finetune.machine import CPU, DTYPES
from finetune.planning.plan import Plan
from finetune.planning.public import public_recipe
from finetune.proof import export, outputs
from finetune.proof.card import write_model_card
from finetune.proof.verify import Report, is_large, verify
from finetune.sampling.session import Session
from finetune.training import samples as pictures
from finetune.training.begin import Run, open_base, start_of
from finetune.training.candidates import about_run, name_of
from finetune.training.learnt import judged
from finetune.training.pick import check_picked
from finetune.training.rehearsal import adapter_layouts
from finetune.training.stop import Events
from finetune.unchanged import unchanged


def finish(run: Run) -> Events:
    """Measure the change, write the file, open it again in a fresh base, prove it, and judge what was learnt. The last
    event is Finished.
    """
    yield Stage("proving", 0)
    held_out: dict[str, Score] = {}
    if isinstance(run.plan.recipe.adapter, recipe.LowRank):
        effect = yield from judge_training(run)
        if run.plan.recipe.evaluate.count != 0:
            data, px = run.data, evaluate.at_once_px(run.plan)
            held_out = held_out_scores(
                run.plan.held_out, data.latents, data.captions, run.device.autocast, px, data.masks
            )
        live = adapters.read_changes(run.family.parts.loaded())
        adapters.check_read(run.state.trainable, live)
        trained = outputs_of(run)
        run.family.parts.release(*run.family.parts)
        finished = (yield from export_adapter(run, live, trained))._replace(effect=effect)
    else:
        run.family.parts.to(CPU)
        finished = yield from export_pipeline(run)
    yield from judged(run.plan, finished.path, run.folder.path, finished.effect, held_out)
    run.folder.end(run.plan)
    yield finished


def outputs_of(run: Run) -> outputs.Reference:
    """What the trained model gives for fixed inputs, to hold the file against; it can be trained no more after this."""
    config = run.plan.recipe
    large = is_large(export.base_sites(config.base))
    known, precision = run.data.captions.known, DTYPES[config.train.precision]
    return outputs.reference(run.family, known, precision, config.train.base_bits, large)


def judge_training(run: Run) -> Generator[Event, None, TrainingEffect]:
    """How far weights and output moved, and how much better the training images are predicted.

    Raises:
        TrainError: nothing measurable changed.
    """
    data, px = run.data, evaluate.at_once_px(run.plan)
    norms = adapters.movement(run.family.parts.loaded(), start_of(run.plan, run.family))
    effect = evaluate.measure_effect(
        moved(norms), run.plan.train.placed, data.latents, data.captions, run.device.autocast, px,
        data.masks,
    )  # fmt: skip
    if effect.output < evaluate.NO_EFFECT:
        raise TrainError(
            f"training had no measurable effect: the prediction changed by {effect.output:.1e}",
            "raise optimizer.learning_rate",
        )
    yield effect
    yield WeightsChanged({name: change / weight for name, (change, weight) in norms.items() if weight > 0})
    for sentence in evaluate.warnings(effect):
        yield Warned(sentence)
    return effect


def moved(norms: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """component -> how far its weights moved, as a share of those that carry an adapter. norms: of each module's
    change, and of its weight.

    Raises:
        TrainError: one did not.
    """
    found = {}
    for component in sorted({name.partition(".")[0] for name in norms}):
        inside = [sizes for name, sizes in norms.items() if name.startswith(f"{component}.")]
        found[component] = evaluate.relative_change(inside)
        if found[component] < evaluate.NO_EFFECT:
            raise TrainError(
                f"training had no measurable effect on the {component}: "
                f"its weights moved by {found[component]:.1e} of their size",
                "raise optimizer.learning_rate or train.steps",
            )
    return found


def export_adapter(run: Run, live: AdapterState, trained: outputs.Reference) -> Generator[Event, None, Finished]:
    """Write every layout, verify each in a fresh base, and draw the final sheet from the file itself."""
    plan, config, out = run.plan, run.plan.recipe.export, run.folder.path
    name, about = name_of(run), about_run(run, run.exported_step)
    wanted, prompts = adapter_layouts(plan, live), public_recipe(plan.recipe, plan.data).sample.prompts
    made = export.export(live, out / "adapter", name, wanted, config.dtype, about, plan.recipe.base, prompts)
    bits = plan.recipe.train.base_bits
    if bits and not is_large(export.base_sites(plan.recipe.base)):
        bits = None  # in full a file is proved by the outputs as well
    verified = None
    for file in (made.diffusers, made.universal):
        if file is not None:
            verified = _passed(file, verify(file, plan.recipe.base, live, bits, trained), out)
            yield verified
    file = made.universal or made.diffusers
    assert file is not None
    check_picked(run, weights.payload_sha256(file))
    if made.merged:
        yield Note(f"merged: rounding to {config.dtype} lost {made.merged.lost:.2%} of the change")
    sheet = final_sheet(plan, file, out, run.exported_step)
    illustrate(run, sheet, pictures.final_pictures(out, file.stem), name, about, sorted(wanted))
    yield Sampled(run.exported_step, (sheet,), sheet)
    return Finished(run.exported_step, "done", file, sheet, verified)


def illustrate(
    run: Run, sheet: Path, drawn: Sequence[Path], name: str, about: About, wanted: Sequence[str]
) -> None:  # fmt: skip
    """The model card once more, with the pictures that were drawn of the exported file.

    Raises:
        RunError: they cannot be written beside it.
    """
    folder = run.folder.path / "adapter"
    try:
        prompts = public_recipe(run.plan.recipe, run.plan.data).sample.prompts
        write_model_card(folder, name, about, wanted, prompts, sheet, drawn)
    except OSError as e:
        said = f"cannot write the model card in {folder}: {e.strerror}"
        raise RunError(said, "the verified file is there; free some space for the rest") from e


def _passed(file: Path, report: Report, out: Path) -> Verified:
    if not report.ok:
        raise VerifyError(
            f"{report.file} does not do what was trained: {report.problems[0]}",
            f"the trained weights are safe in {out / 'adapter' / 'peft'}; please report this",
        )
    return Verified(
        file, report.expected, report.hit, report.live, report.outputs, report.stock_output, report.findings
    )


def export_pipeline(run: Run) -> Generator[Event, None, Finished]:
    """Save the trained base as a pipeline, open it again, and compare."""
    plan, family, name = run.plan, run.family, name_of(run)
    folder = run.folder.path / "adapter" / name
    dtype = export.FILE_DTYPES[plan.recipe.export.dtype]
    save(family, folder, dtype)
    export.for_others(folder)
    base, again = families.load(plan.recipe.base, facts=plan.facts), families.load(str(folder))
    for component in adapters.component_names(plan.recipe.adapter, family.denoiser_name):
        written = {n: p.to(dtype).float() for n, p in family.parts[component].state_dict().items()}
        if evaluate.distance(again.parts[component].state_dict(), written) != 0:
            raise VerifyError(f"{folder / component} does not read back as written", "is the disk sound?")
        share = evaluate.distance(base.parts[component].state_dict(), again.parts[component].state_dict())
        yield Note(f"{component}: weights moved by {share:.2%}")
        if share < evaluate.NO_EFFECT:
            raise TrainError(f"training had no measurable effect on the {component}", "raise optimizer.learning_rate")
    yield Note(f"written and read back equal: {folder}")
    sessions = {
        label: Session.of(one, pictures.sample_prompts(plan), CPU) for label, one in (("base", base), (name, again))
    }
    rows = [(label, pictures.draw_samples(plan, session)) for label, session in sessions.items()]
    sheet = pictures.write_sheet(plan, rows, run.folder.path, {})
    yield Sampled(plan.steps, (sheet,), sheet)
    return Finished(run.state.step, "done", folder, sheet)


def final_sheet(plan: Plan, file: Path, out: Path, step: int) -> Path:
    """Base row and adapter row at the same seeds, the adapter read from its file by stock diffusers."""
    session = Session.of(open_base(plan), pictures.sample_prompts(plan))
    rows = [("base", pictures.draw_samples(plan, session))]
    with unchanged([file]):
        session.load_by_diffusers(file)
        facts = {"adapter": file.name, "adapter_sha256": weights.file_sha256(file), "step": str(step)}
    rows.append((file.stem, pictures.draw_samples(plan, session)))
    return pictures.write_sheet(plan, rows, out, facts)
