"""One training run, from a recipe to a proved file: a stream of events. Reads top to bottom as the procedure."""

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from finetune import optimizers
from finetune.encoding.stored import EntryLost
from finetune.errors import Interrupted, PeerLost, RunError, SaidByAnother
from finetune.evaluation import effect as evaluate
from finetune.events import Note, Resumed, Saved, Stage, Stepped, Validated, Warned
from finetune.machine import CPU, Device, meet, open_machine
from finetune.pages.report import Wording
from finetune.planning import plan as planning
from finetune.planning.candidates import is_candidate, is_scored
from finetune.planning.names import renamed
from finetune.planning.plan import Plan
from finetune.planning.schedule import batch_in_words
from finetune.planning.spread import is_spread
from finetune.recipe import Loaded, LowRank
from finetune.reporting.trackers import how_to_open
from finetune.sampling.session import Picture, Session
from finetune.shortage import out_of_memory
from finetune.training import candidates, checkpoint, levers, preflight
from finetune.training import loop as trainer
from finetune.training import samples as pictures
from finetune.training.begin import Run, begin, beginning
from finetune.training.candidates import name_of
from finetune.training.finish import finish
from finetune.training.finished import finished, said_again
from finetune.training.folder import RunFolder, Unwritten
from finetune.training.gathered import brought_home, gathered
from finetune.training.group import check_agreement, together
from finetune.training.loop import Step
from finetune.training.pick import pick, score_candidate, stop_reason
from finetune.training.rehearsal import rehearse
from finetune.training.rescue import unsaved
from finetune.training.resume import begun_as, record, refuse_changes, resolving_resumed
from finetune.training.stop import Events, Interruption, resuming


def run(loaded: Loaded, out: Path, resume: bool = False, worded: Wording = str) -> Events:
    """Train what the recipe says into the folder `out`; the last event is Finished.

    Whoever iterates decides the pace, and may stop at any event: closing the iterator (as a `break` does) saves the
    last step as Ctrl-C does, and the run can be resumed. worded: how the run's page writes what its reader may do next.

    Raises:
        FinetuneError: what is wrong and what to do; the newest checkpoint is kept.
    """
    stop = Interruption(out)
    return stop.listening(_procedure(loaded, out, resume, stop, worded))


def _procedure(loaded: Loaded, out: Path, resume: bool, stop: Interruption, worded: Wording) -> Events:
    with out_of_memory(), _threads_kept():
        ranks = meet()
        with together(ranks):
            world = ranks.world_size
            resolving = resolving_resumed(loaded, out, world) if resume else planning.resolving(loaded, world)
            plan = yield from resolving
        if resume and (result := finished(plan, out)):
            if ranks.rank == 0:
                yield from said_again(result, out)
            return
        with together(ranks):
            device = open_machine(plan.recipe.train.precision, is_spread(plan, world))
            folder = RunFolder(out, worded) if ranks.rank == 0 else Unwritten(out)
            folder.open(plan, resume)
        folder.file = loaded.file
        yield from folder.recorded(stop.restored(_in_memory(plan, _stages(plan, device, folder, resume, stop))))


@contextmanager
def _threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_memory(plan: Plan, events: Events) -> Events:
    """The same events; want of memory is in the words of an error before it is written down."""
    with out_of_memory(lever=lambda: levers.training(plan.recipe)):
        yield from events


def _stages(plan: Plan, device: Device, folder: RunFolder, resume: bool, stop: Interruption) -> Events:
    yield from (Warned(notice) for notice in plan.notices)
    yield Note(describe_run(plan, device))
    if said := renamed(plan.recipe.name, folder.path):
        yield Warned(said)
    with together(device.ranks, waited_for=device.shards):
        run = yield from beginning(plan, device, folder)
        if resume:
            yield from restore(run)
    check_agreement(run)
    with together(device.ranks, waited_for=device.shards):
        yield from first(run, stop)
    yield from loop(run, stop)
    with trainer.ema_weights(run.state):
        run = brought_home(run)
        if folder.writes:
            with stop.kept(), out_of_memory("while the result is checked", lambda: levers.sampling(run.plan.recipe)):
                yield from pick(run)
                yield from finish(run)


def describe_run(plan: Plan, device: Device) -> str:
    facts, config = plan.facts, plan.recipe
    threads = torch.get_num_threads()
    cpu = f"CPU, {threads} thread{'s' * (threads > 1)}"
    name = torch.cuda.get_device_name() if device.device.type == "cuda" else cpu
    together = f"; {batch_in_words(plan.train.schedule)}" if device.ranks.world_size > 1 else ""
    spread = "; the weights are spread over the ranks" if device.shards else ""
    return f"{config.base}: {facts.described()}; {config.train.precision} on {name}{together}{spread}"


def restore(run: Run) -> Events:
    """Put the newest whole checkpoint back; without one, start from step 0.

    Raises:
        RunError: the run was another one, or has more steps behind it than the recipe asks for.
    """
    out = run.folder.path
    found, damage = checkpoint.newest(out / "checkpoints")
    for sentence in damage:
        yield Warned(f"checkpoint left aside: {sentence}")
    before = record(out)
    refuse_changes(out, begun_as(found.identity if found else before.get("identity", {})), run.folder.identity)
    if found is None:
        if damage:
            raise RunError(f"{out}: no whole checkpoint is left ({damage[0]})", "start again with another `out`")
        yield Note("no checkpoint yet: starting at step 0")
        return
    if found.step > run.plan.steps:
        raise RunError(
            f"train.steps = {run.plan.steps}, and {found.step} steps are done: {found.path}",
            f"train.steps = {found.step} or more, or another `out`",
        )
    checkpoint.load_checkpoint(found, run.state)
    if preflight.chooses_threads(run.device):
        torch.set_num_threads(int(before.get("threads", torch.get_num_threads())))  # sums of floats depend on it
    yield Resumed(run.state.step, found.path)
    yield from schedule_changes(run, int(before.get("steps", run.plan.steps)))


def schedule_changes(run: Run, before: int) -> Iterator[Warned]:
    """A learning rate that falls to the end of a run is another one when the end is moved."""
    config, step, steps = run.plan.recipe.optimizer, run.state.step, run.plan.steps
    was, now = (optimizers.factor(config, step, length) for length in (before, steps))
    if was != now and step < steps:
        yield Warned(
            f"train.steps is {steps}, and was {before}: from step {step + 1} on the learning rate is that of a run of "
            f"{steps} steps, now {now:.0%} of its peak instead of {was:.0%}; the steps before are kept as they were"
        )


def measure_plan(plan: Plan) -> preflight.Measured:
    """One real step at the largest bucket, for a plan that measures: nothing is written but the cache."""
    run = begin(plan)
    return preflight.measure(run.state, run.data.batches, plan.recipe, run.device)


def first(run: Run, stop: Interruption) -> Events:
    """All that the end needs is tried, and one real step, put back; then the run's folder is begun: what is refused
    here leaves nothing in it but its log.

    Raises:
        TrainError, MemoryShortage: it cannot be trained.
        RunError, VerifyError, BaseError: its end would fail, as `rehearse`.
    """
    measured, before = None, torch.get_num_threads()
    if run.state.step < run.plan.steps:
        with gathered(run):
            if run.folder.writes:
                rehearse(run)
        measured = preflight.measure(run.state, run.data.batches, run.plan.recipe, run.device)
        torch.set_num_threads(measured.threads)
    run.folder.begin(run.plan)
    stop.begun = True
    stop.base = run.plan.recipe.base if isinstance(run.plan.recipe.adapter, LowRank) else ""
    report = run.plan.recipe.report
    if run.folder.writes and (line := how_to_open(report.to, run.folder.path, report.project)):
        yield Note(line)
    if measured:
        if measured.threads < before:
            yield Note(f"one CPU thread takes less time for a step than {before} do here: the run uses one")
        yield Note(f"pre-flight: loss {measured.loss:.4f}, {measured.seconds:.2f} s a step at the largest bucket, "
                   f"peak memory {measured.peak_bytes / 2**30:.2f} GiB")  # fmt: skip


def loop(run: Run, stop: Interruption) -> Events:
    """Train to the last step; save, then validate and sample, as the recipe says."""
    state, steps = run.state, run.plan.steps
    run.folder.saved = state.step
    if state.step == 0:
        yield from observe(run, 0)
    if reason := stop_reason(run):
        yield Note(f"stopped at step {state.step}: {reason}")
        return
    yield Stage("training", steps)
    memory = out_of_memory(lambda: f"at step {state.step + 1}", lambda: levers.training(run.plan.recipe))
    with stop.deferred(), memory, closing(run.data.batches):
        try:
            yield from _steps(run, stop)
        except (PeerLost, EntryLost) as e:
            if not run.device.shards:
                yield from save_step(run)
            if isinstance(e, EntryLost):
                raise
            raise _left_alone(run, e) from e


def _steps(run: Run, stop: Interruption) -> Events:
    config, state, steps, alone = run.plan.recipe, run.state, run.plan.steps, run.device.ranks.world_size == 1
    for step in trainer.train(state, run.data.batches, config, run.device, stop.wanted):
        try:
            yield stepped(step, steps)
            due = step.number % config.train.checkpoint_every == 0 or step.number == steps
            asked = step.stop or (alone and stop.asked)  # among ranks, what all of them have heard
            if (due and state.bad_steps == 0) or asked:
                yield from save_step(run)
            if asked:
                raise _stopped(run, stop)
            with trainer.ema_weights(state):
                yield from observe(run, step.number)
        except BaseException:
            # a look at the model, or a reader who leaves, must not cost what it learnt
            for event in save_step(run) if not run.device.shards else ():
                run.folder.record(event)
            raise
        if is_scored(run.plan, step.number) and step.number < steps and (reason := stop_reason(run)):
            yield from save_step(run)
            yield Note(f"stopped at step {step.number}: {reason}")
            return
    if stop.asked and alone:
        yield from save_step(run)
        raise _stopped(run, stop)


def _stopped(run: Run, stop: Interruption) -> Interrupted | SaidByAnother:
    """The first rank has saved, and says so."""
    return stop.error(run.state.step) if run.folder.writes else SaidByAnother(Interrupted.exit_code)


def _left_alone(run: Run, lost: PeerLost) -> PeerLost:
    """Another process has ended inside a step, which is not taken."""
    ranks, out = run.device.ranks, run.folder.path
    saved = run.folder.saved
    said = f"; step {saved} is saved" if run.folder.writes and saved else ""
    return PeerLost(f"rank {ranks.rank}: {lost.problem}{said}", action=resuming(out))


def save_step(run: Run) -> Generator[Saved, None, None]:
    """A checkpoint of the step just taken, where there is none yet.

    Raises:
        RunError: the disk is full, or gone; says where the state is then.
    """
    try:
        saved = run.folder.save(run.state, run.plan.recipe.train.keep_last, candidates.described(run))
    except OSError as e:
        raise unsaved(run, e) from e
    if saved:
        yield saved


def observe(run: Run, step: int) -> Events:
    """Held-out losses, the adapter's file and its scores, and samples that are due at this step. Changes nothing. The
    ranks share the losses and the pictures; the first one writes."""
    if not is_looked_at(run.plan, step):
        return
    with out_of_memory(f"while step {step} is looked at", lambda: levers.sampling(run.plan.recipe)):
        with gathered(run):
            yield from _observed(run, step)


def is_looked_at(plan: Plan, step: int) -> bool:
    """Is anything of it due at this step?"""
    config = plan.recipe
    judged, drawn = plan.held_out and step % config.validation.every == 0, config.sample.every
    return bool(is_candidate(plan, step) or judged or (drawn and step % drawn == 0))


def _observed(run: Run, step: int) -> Events:
    plan, config, ranks = run.plan, run.plan.recipe, run.device.ranks
    if is_candidate(plan, step):
        try:
            if run.folder.writes:
                yield from candidates.write_candidate(run)
            if is_scored(plan, step):
                yield from score_candidate(run)
        except OSError as e:
            raise unsaved(run, e) from e
    if plan.held_out and step % config.validation.every == 0:
        px = evaluate.at_once_px(plan)
        data, autocast = run.data, run.device.autocast
        found = evaluate.losses(
            plan.held_out, data.latents, data.captions, autocast, px=px, ranks=ranks, masks=data.masks
        )
        yield Validated(step, found.mean, found.bands)
    if config.sample.every and step % config.sample.every == 0:
        drawn = _drawn(run)
        if run.folder.writes:
            yield pictures.write_step(plan, drawn, step, name_of(run), run.folder.path)


def _drawn(run: Run) -> list[Picture]:
    """The recipe's prompts by the model as it is, each rank its share of them."""
    family, device = run.family, run.device
    family.parts.to(device.device, "vae")
    session = Session(family, run.data.captions, device.device, device.autocast)
    drawn = pictures.draw_samples(run.plan, session, device.ranks)
    family.parts.to(CPU, "vae")
    return drawn


def stepped(step: Step, steps: int) -> Stepped:
    return Stepped(
        step.number, steps, step.loss, step.prior_loss, step.grad_norm, step.rates, step.seconds, step.skipped,
        preflight.peak_bytes(),
    )  # fmt: skip
