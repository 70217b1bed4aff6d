"""Before the first step: what the end of a run needs is tried once.

The file is written as it will be, of the adapter as it is, and read back; a picture is generated, the sheet and the
card are made, the judge is opened. All is removed again.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.adapters import attach as adapters
from finetune.adapters.change import AdapterState
from finetune.choices import Layout
from finetune.errors import InputError, RunError, VerifyError
from finetune.evaluation import subject
from finetune.evaluation.evaluate import asked_of
from finetune.evaluation.similarity import FeatureExtractor
from finetune.files import layouts
from finetune.planning.plan import Plan
from finetune.planning.public import public_recipe
from finetune.proof import export
from finetune.proof.card import write_model_card
from finetune.sampling.png import write_png
from finetune.training import samples as pictures
from finetune.training.begin import Run
from finetune.training.candidates import about_run, name_of
from finetune.training.folder import TRYOUT
from finetune.training.learnt import subject_of
from finetune.training.pick import Live

_STEPS = 2
"""denoising steps of the picture that is tried"""


def rehearse(run: Run) -> None:
    """Try it; nothing of it is left.

    Raises:
        RunError: a file of the run's end cannot be written.
        VerifyError: the adapter's file does not hold what is trained, or pictures are not finite.
        BaseError: the judge cannot be used.
    """
    folder = run.folder.path / TRYOUT
    with _tried(folder):
        wanted = _try_files(run, folder)
        _try_pictures(run, folder, wanted)
        _try_judge(run.plan)


def adapter_layouts(plan: Plan, modules: AdapterState) -> set[Layout]:
    """The layouts that a run exports: the widest read one that holds the change, and those that the recipe names."""
    named = (layout for layout in plan.recipe.export.layouts if layout != "universal")
    return {layouts.main_layout(modules), *named}


@contextmanager
def _tried(folder: Path) -> Iterator[None]:
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield
    except OSError as e:
        place = str(e.filename or folder).replace(f"{TRYOUT}/", "adapter/")
        raise RunError(
            f"before the first step: what the run writes at its end cannot be written: {place}: {e.strerror or e}",
            "choose another `out`, or a shorter name",
        ) from e
    except (InputError, VerifyError) as e:
        raise type(e)(f"before the first step: {e.problem}", e.hint, e.action, e.other) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _try_files(run: Run, folder: Path) -> list[str]:
    """The files of the adapter; of all weights only their folder. Returns the layouts for the card; none: no card."""
    live, name = adapters.read_changes(run.family.parts.loaded()), name_of(run)
    if not live:
        (folder / name).mkdir()
        return []
    adapters.check_read(run.state.trainable, live)
    wanted = adapter_layouts(run.plan, live)
    made = export.export(
        live, folder, name, wanted - {"merged"}, run.plan.recipe.export.dtype, about_run(run, run.plan.steps),
        prompts=public_recipe(run.plan.recipe, run.plan.data).sample.prompts,
    )  # fmt: skip
    for file in (made.universal, made.diffusers, made.peft):
        if file is not None:
            export.read_back(live, file)
    return sorted(wanted)


def _try_pictures(run: Run, folder: Path, wanted: list[str]) -> None:
    """One picture, the sheet, and the card with both. Where pictures of step 0 are wanted, those are the ones."""
    plan, first = run.plan, pictures.requests(run.plan)[0]
    if plan.recipe.sample.every and run.state.step == 0:
        return
    request = first._replace(steps=min(first.steps, _STEPS))
    with Live(run).adapted(pictures.sample_prompts(plan)) as session:
        picture = session.generate(request)
    rows = [(label, [picture] * len(plan.recipe.sample.prompts)) for label in ("base model", name_of(run))]
    sheet, single = folder / "sheet.png", folder / "00.png"
    pictures.write_grid(plan, rows, sheet, name_of(run), {"step": str(plan.steps)})
    write_png(picture.image, single, pictures.picture_facts(plan, request, {}))
    if wanted:
        prompts = public_recipe(plan.recipe, plan.data).sample.prompts
        card = folder / "card"
        card.mkdir()
        write_model_card(card, name_of(run), about_run(run, plan.steps), wanted, prompts, sheet, [single])


def _try_judge(plan: Plan) -> None:
    """Whoever judges the result at the end, and what it will be asked."""
    wanted = plan.recipe.evaluate
    judge = None if wanted.count == 0 else subject.judge_for(plan.recipe.base, wanted.judge, plan.data)
    if judge is not None:
        FeatureExtractor.load(judge)
        asked_of(subject_of(plan, Path(), Path(), judge, None))
