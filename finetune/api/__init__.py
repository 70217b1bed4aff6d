"""The calls that programs and notebooks make. Each is quiet, and brings the libraries it needs when it is called."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from finetune import reading
from finetune.api.datasets import caption as caption
from finetune.api.datasets import mask as mask
from finetune.api.datasets import prepare as prepare
from finetune.api.quiet import quiet
from finetune.choices import Dtype, Layout, Precision, ReaderName
from finetune.silence import silence

if TYPE_CHECKING:
    from finetune.evaluation.compare import Comparison
    from finetune.events import Evaluated, Event
    from finetune.files.inspection import Inspection
    from finetune.planning.plan import Plan
    from finetune.proof.verify import Report
    from finetune.recipe import Loaded, Recipe
    from finetune.reporting.status import RunStatus
    from finetune.sampling.folder import Written
    from finetune.training.stop import Events


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> "Recipe":
    """Read a recipe: a file, or the name of a shipped one such as "pocket-product".

    overrides: `table.key=value` each, such as "train.steps=500"; they win over the file. docs/recipes.md lists keys.
    A recipe may as well be built in Python: `Recipe(base="pocket", data={"path": "example:product"})`, which raises
    pydantic's ValidationError (a ValueError) where a value is wrong.

    Warns: FutureWarning for each key that has a new name.

    Raises:
        RecipeError: names every wrong key and value at once.
    """
    from finetune import recipe as recipes

    loaded = recipes.load(Path(path), overrides)
    for notice in loaded.notices:
        warnings.warn(notice, FutureWarning, stacklevel=2)
    return loaded.recipe


def plan(recipe: "Recipe | Path | str", gpus: int = 1) -> "Plan":
    """Decide all that the recipe leaves open, from the base, the data and this machine; nothing is loaded or written.

    gpus: how many the run will use. The result's `recipe` has every value, `steps` and `samples` are the length,
    `buckets()` the sizes in px.

    Raises:
        RecipeError, DataError, BaseError: what does not fit together.
    """
    with quiet():
        from finetune.planning import plan as planning

        return planning.resolve_plan(_loaded(recipe), gpus)


def train(
    recipe: "Recipe | Path | str | None", out: Path | str, resume: "bool | Literal['auto']" = False
) -> "Events":  # fmt: skip
    """Train an adapter into the folder `out`, export and verify it: an iterator of `finetune.events`.

    The run goes as far as it is read; `out/events.jsonl` and TensorBoard logs are written as it goes. The last event is
    Finished, with the path of the proved file. Leaving the loop (`break`, Ctrl-C) saves the last step;
    resume: go on from there, bit for bit, by the run's own recipe, when recipe is None. Of a file only what was edited
    since the run began changes that recipe; a `Recipe` takes its place. What is changed is told, or refused. "auto": go
    on if `out` holds a run, else begin one.

    Raises, while it is read:
        InputError: recipe, data, base or folder cannot be used.
        MemoryShortage: the device has too little memory.
        TrainError: the run diverged, or had no effect.
        VerifyError: the exported file does not do what was trained.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    return _quietly(lambda: _run(recipe, out, resume))


def status(folder: Path | str = ".") -> "list[RunStatus]":
    """Where the run in a folder stands, or each run beneath it: how far it is, how it ended, what to look at.

    Also of a run that is going on in another process, and of one that was killed: `state` is then "stopped without a
    word", and `resume` says how to go on. Nothing is loaded or changed.

    Raises:
        RunError: there is no such folder, or no run in it.
    """
    from finetune.reporting.status import read_status, run_folders

    return [read_status(one) for one in run_folders([Path(folder)])]


def sample(
    base: Path | str, prompts: Sequence[str], out: Path | str, adapters: Sequence[tuple[Path | str, float]] = (), *,
    negative: str = "", seed: int = 0, count: int = 1, steps: int | None = None, guidance: float | None = None,
    size: tuple[int, int] | None = None, scheduler: str = "", merged: bool = False, precision: Precision = "auto",
    base_bits: int | None = None, text_encoder_bits: int | None = None, safety_checker: bool = True,
    trigger: str | None = None, class_word: str | None = None,
) -> "list[Written]":  # fmt: skip
    """Generate a picture of each prompt at `count` seeds from `seed` on, and a grid of them all, as PNG files in `out`.

    adapters: (file, PEFT folder or RUN@STEP, weight); weight 1 is as trained. negative: what pictures should not show.
    steps: denoising steps; 20 when None, 8 with lcm and tcd. guidance and size (width, height in px): the usual when
    None. scheduler: "" is the base's own; "lcm" and "tcd" are for few-step adapters of Stable Diffusion. merged:
    adapters are merged into the weights first. precision: of the computation; "auto" is bf16 or fp16 on a GPU, fp32 on
    a CPU. base_bits, text_encoder_bits: the denoiser in 4 bits, a large text encoder in 8 or 4.
    safety_checker: the base's own is used, where it has one. trigger, class_word: what {trigger} and {class_word} in a
    prompt stand for; the adapter's own when None. Returns where each picture is, the grid last.

    Warns: UserWarning for a trigger that no prompt has, and for a prompt that is longer than the base reads.

    Raises:
        InputError: what was asked for does not fit the base or this machine; a prompt cannot be read.
        RunError: `out` cannot be written, or holds pictures of an earlier call.
        VerifyError: an adapter cannot be read whole for this base.
    """
    with quiet():
        from finetune import references
        from finetune.events import Warned
        from finetune.sampling import folder
        from finetune.sampling.request import AdapterWeight, SampleSet, SessionOptions

        wanted = SampleSet(prompts, negative, seed, count, steps, guidance, size, trigger, class_word)
        options = SessionOptions(precision, base_bits, text_encoder_bits, scheduler, safety_checker, merged)
        weighted = [AdapterWeight(references.adapter_path(file), weight) for file, weight in adapters]
        events = list(folder.sample(str(base), wanted, Path(out), weighted, options))
    for event in events:
        if isinstance(event, Warned):
            warnings.warn(event.text, UserWarning, stacklevel=2)
    return [event for event in events if isinstance(event, folder.Written)]


def evaluate(
    what: Path | str, *, base: Path | str = "", data: Path | str | None = None, judge: Path | str | None = None,
    count: int | None = None,
) -> "Evaluated":  # fmt: skip
    """Was it learnt? Generate fixed prompts with an adapter and with its base, at the same seeds, and compare both with
    the training pictures.

    what: a run's folder, a step of it (RUN@500), or an adapter file. base, data: the base and the folder of training
    pictures, where `what` does not say. judge: folder of a CLIP or DINOv2 in transformers' layout; the pocket base has
    its own. count: pictures with the trigger. The result's `learnt` is the answer, `text` says it in words, `reasons`
    why not, `scores` has each measure with its interval. Pictures are kept beside `what`, and not generated twice; of a
    run's folder the verdict goes into its log and its page.

    Raises:
        InputError: something must be named, or cannot be read.
        VerifyError: the adapter cannot be read whole for this base.
    """
    with quiet():
        from finetune.evaluation.evaluate import evaluate as judged
        from finetune.evaluation.subject import of_path
        from finetune.events import unheard
        from finetune.pages.writer import keep_verdict

        told = unheard(judged(of_path(Path(what), str(base), _folder(data), _folder(judge), count)))
        keep_verdict(Path(what), told)
        return told


def report(run: Path | str, out: Path | str | None = None) -> Path:
    """Write a run's page: one HTML file that says whether it learnt, whether it is good, and which file to use.

    run: a run's folder, whatever state the run is in; `train` writes the page as it goes. out: RUN/report.html when
    None. Returns where the page is.

    Raises:
        RunError: there is no run in that folder, or the page cannot be written.
    """
    with quiet():
        from finetune.pages.report import write_report

        return write_report(Path(run), _folder(out))


def compare(
    adapters: Sequence[Path | str], out: Path | str, *, weights: Sequence[float] = (1.0,),
    steps: "Sequence[int] | Literal['all']" = (), prompts: Sequence[str] = (), seed: int = 0, count: int = 1,
    base: Path | str = "", data: Path | str = "", judge: Path | str = "",
) -> "Comparison":  # fmt: skip
    """Generate the same prompts and seeds with each adapter at each weight, and with the base, and score them; written
    into `out` as comparison.html, comparison.png and comparison.json.

    adapters: files, PEFT folders, run folders or RUN@STEP, of one base. steps: of each run the adapters of these steps,
    or of all that it kept, instead of what it exported. prompts: with {trigger} and {class_word}, each at `count` seeds
    from `seed` on; those of the verdict when there are none. base, data, judge: as for `evaluate`. The result's `rows`
    have pictures and scores, `best` is the row to take, `why` says why. The same call goes on where it was stopped.

    Raises:
        InputError: adapters of several bases, an adapter twice, a prompt or a weight that cannot be.
        RunError: `out` holds something else, or cannot be written.
        VerifyError: an adapter cannot be read whole for the base.
    """
    with quiet():
        from finetune.evaluation.compare import ComparisonRequest
        from finetune.evaluation.compare import compare as compared
        from finetune.events import unheard
        from finetune.pages import comparison

        wanted = ComparisonRequest(
            tuple(map(str, adapters)), tuple(weights), steps if steps == "all" else tuple(steps), tuple(prompts), seed,
            count, str(base), str(data), str(judge),
        )  # fmt: skip
        comparison.claim(Path(out), wanted)
        work = compared(wanted, Path(out) / comparison.PICTURES)
        found = unheard(comparison.begun(work, wanted, Path(out)))
        comparison.write_comparison(found, wanted, Path(out))
        return found


def verify(
    file: Path | str, base: Path | str = "", run: Path | str | None = None, base_bits: int | None = None,
    readers: Sequence[ReaderName] = (),
) -> "Report":  # fmt: skip
    """Load an adapter file, from any trainer, into a fresh base: is every weight used, and does stock diffusers agree?

    file: may also be a PEFT folder, a run folder, or a step of a run (RUN@500). base: when empty, the one that the file
    names. run: folder of the run that trained the file, to compare it with. base_bits: 4 loads the denoiser in 4 bits.
    readers: programs that must apply it as it says, such as "comfyui"; none: those whose names it has. The result's
    `ok` is the answer, `problems` says why not, `readers` what each program makes of it.

    Raises:
        BaseError: the file or the base cannot be read at all.
    """
    with quiet():
        from finetune import references
        from finetune.files import layouts
        from finetune.proof.verify import verify as check

        file, folder = references.adapter_path(file), Path(run) if run else None
        trained = layouts.read_adapter(folder / "adapter" / "peft").modules if folder else None
        return check(file, str(base) or base_of(file, folder), trained, base_bits, readers=readers)


def inspect(file: Path | str) -> "Inspection":
    """What an adapter file, PEFT folder, run folder or step of a run (RUN@500) holds: layout, modules, ranks, metadata.
    No base is needed.

    Raises:
        BaseError: it cannot be read at all.
    """
    with quiet():
        from finetune.files import inspection

        return inspection.inspect(Path(file))


class Converted(NamedTuple):
    """An adapter in another layout."""

    path: Path
    difference: float
    """worst module's difference to its source, relative; of a merged pipeline, the share of the change that rounding
    lost"""
    verified: bool
    """in a fresh base; False: none was named"""


def export(
    source: Path | str, layout: Layout = "universal", out: Path | str | None = None, base: Path | str = "",
    dtype: Dtype = "float32", readers: Sequence[ReaderName] = (),
) -> Converted:  # fmt: skip
    """Convert a LoRA file, PEFT folder or run folder, from any trainer, to another layout, and read it back; RUN@500 is
    step 500 of a run.

    layout: "universal" is one file for every program, "diffusers" one for diffusers, "peft" a folder, "merged" a whole
    pipeline. out: NAME-LAYOUT in the current folder when None. base: verify the result in it; a merged pipeline needs
    one, and a run names its own. dtype: number format of the file. readers: programs that must read the result.

    Raises:
        BaseError: the source cannot be read, or the base must be named.
        RunError: `out` exists, or cannot be written.
        VerifyError: something in the source has no place; or the result is not the source.
    """
    with quiet():
        from finetune import references
        from finetune.proof.export import convert

        source, base = references.adapter_path(source), str(base)
        if layout == "merged" and not base and (run := references.run_of(source)):
            base = _run_base(run)
        suffix = ".safetensors" if layout in ("universal", "diffusers") else ""
        name = f"{references.adapter_name(source)}-{layout}{suffix}"
        target = Path(out) if out else Path(name)
        return Converted(target, convert(source, layout, target, base, dtype, readers), bool(base))


def base_of(file: Path, run: Path | None) -> str:
    """The run's base, or that of the run folder the file lies in, or what the file says.

    Raises:
        BaseError: none of them names one.
    """
    from finetune import references
    from finetune.errors import BaseError
    from finetune.files import layouts

    for folder in (run, references.run_of(file)):
        if folder and reading.is_file(folder / "recipe.toml"):
            return _run_base(folder)
    said = layouts.read_adapter(file).metadata.get("finetune.base", "")
    if not said:
        raise BaseError(f"{file} does not say what base it was made for", "name it: `base`")
    return said


def _run_base(run: Path) -> str:
    from finetune import recipe

    file = run / "recipe.toml"
    return recipe.load(file).recipe.base if reading.is_file(file) else ""


def _folder(path: Path | str | None) -> Path | None:
    return Path(path) if path else None


def _loaded(recipe: "Recipe | Path | str") -> "Loaded":
    from finetune import recipe as recipes

    if isinstance(recipe, Path | str):
        return recipes.load(Path(recipe))
    return recipes.Loaded(recipe, {}, Path())


def _run(recipe: "Recipe | Path | str | None", out: Path | str, resume: "bool | Literal['auto']") -> "Events":
    from finetune.errors import RunError
    from finetune.training import run
    from finetune.training.resume import goes_on, own_recipe

    resume = goes_on(Path(out)) if resume == "auto" else resume

    given = Path(recipe) if isinstance(recipe, Path | str) else recipe
    if resume and (given is None or isinstance(given, Path)):
        loaded = own_recipe(Path(out), given)
    elif given is None:
        raise RunError("a new run needs a recipe", "name a file, a shipped recipe, or make a Recipe")
    else:
        loaded = _loaded(given)
    return run.run(loaded, Path(out), resume)


def _quietly(begin: "Callable[[], Events]") -> "Events":
    """The same events, each made in silence; between them the reader has the settings that are the reader's own."""
    with silence():
        events = begin()
    resume: Callable[[], Event | None] = partial(next, events, None)
    try:
        while True:
            with silence():
                event = resume()
            if event is None:
                return
            resume = partial(next, events, None)
            try:
                yield event
            except KeyboardInterrupt as e:
                resume = partial(events.throw, e)
    finally:
        with silence():
            events.close()
