"""Adapters beside each other: each at several weights, at the same prompts and seeds, on one base, opened once."""

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from finetune import families, references
from finetune import resources as shipped
from finetune.data.example import Dataset
from finetune.data.text import captions
from finetune.errors import InputError
from finetune.evaluation import subject, verdict
from finetune.evaluation.choose import Limits, because, best
from finetune.evaluation.evaluate import DENOISING_STEPS, Painted, asked_of, measure_pictures
from finetune.evaluation.gallery import BASE_ROW, PictureStore, content_id
from finetune.evaluation.prompts import Asked, PromptSet, aim_of, bare_caption
from finetune.evaluation.similarity import FeatureExtractor
from finetune.events import Advanced, Event, Note, Score, Scored, Stage
from finetune.reading import absent, exists, read_toml, real_path, toml_table
from finetune.recipe import Evaluate, bounds
from finetune.reporting.history import RECIPE_FILE
from finetune.sampling.request import MOST_WEIGHT, STEPS, AdapterWeight, SampleRequest, SampleSet
from finetune.sampling.session import Session
from finetune.sampling.words import AdapterInUse, adapters_in_use, written_out


@dataclass(frozen=True)
class ComparisonRequest:
    """What shall stand beside each other."""

    adapters: tuple[str, ...]
    """adapter files, PEFT folders, run folders, RUN@STEP"""
    weights: tuple[float, ...] = (1.0,)
    steps: tuple[int, ...] | Literal["all"] = ()
    """of each run, in place of what it exported: the candidates that it kept"""
    prompts: tuple[str, ...] = ()
    """with {trigger} and {class_word}; those of the verdict when there are none"""
    seed: int = 0
    count: int = 1
    """seeds for each prompt, from `seed` on; of prompts that are named"""
    base: str = ""
    data: str = ""
    judge: str = ""


class Compared(NamedTuple):
    """An adapter, with the words it says it was trained with."""

    name: str
    """as the user wrote it"""
    short: str
    """the same without the folders that all have in common"""
    file: Path
    words: AdapterInUse


class Column(NamedTuple):
    """A prompt as it was written, and its seed."""

    prompt: str
    seed: int


class ComparisonRow(NamedTuple):
    """The pictures of an adapter at one weight; of the base when there is no adapter."""

    adapter: Compared | None
    weight: float
    requests: tuple[SampleRequest, ...]
    """one for each column"""
    pictures: tuple[Image.Image, ...]
    seen: str
    """in how many prompts with the trigger the product or style is seen, such as 9/10; empty: not judged"""
    scores: dict[str, Score]

    @property
    def label(self) -> str:
        return f"{self.adapter.short} at {self.weight:g}" if self.adapter else "base"


class Comparison(NamedTuple):
    base: str
    columns: tuple[Column, ...]
    rows: tuple[ComparisonRow, ...]
    """the base's first"""
    best: int | None
    """the row to take; None: not judged"""
    why: str
    """why that one, or why none was judged"""


def compare(wanted: ComparisonRequest, folder: Path) -> Generator[Event, None, Comparison]:
    """Generate what is not in the folder yet, score it where a judge and the training pictures are known, and say which
    to take. Killed in between, it goes on where it was.

    Raises:
        InputError: adapters of several bases, one named twice, a weight or a prompt that cannot be, no prompts.
        RunError: the folder cannot be written.
        VerifyError: an adapter cannot be read whole for the base.
    """
    some = list(_entries(wanted))
    base = _one_base(wanted, some)
    about, unjudged = _subject(wanted, base)
    plan = _plan(wanted, some, base, about)
    cells = len(plan.columns) * (1 + len(some) * len(wanted.weights))
    yield Note(f"{cells} pictures: {len(plan.columns)} prompts and seeds x {len(some)} adapters x "
               f"{len(wanted.weights)} weights, and the base")  # fmt: skip
    store = PictureStore(folder, base, subject.session_options(prediction=about.options.prediction if about else ""))
    yield from _generate(plan, store)
    rows = list(_rows(plan, store))
    if about is None:
        return Comparison(base, plan.columns, tuple(rows), None, unjudged)
    yield Stage("judging", 0)
    rows = list(_scored(rows, plan, about))
    chosen, why = _chosen(rows)
    return Comparison(base, plan.columns, tuple(rows), chosen, "; ".join([why, *_reservations(wanted, rows, about)]))


class _Cells(NamedTuple):
    """Every picture that is wanted."""

    base: str
    columns: tuple[Column, ...]
    of_base: tuple[SampleRequest, ...]
    of_adapters: tuple[tuple[Compared, tuple[SampleRequest, ...]], ...]
    weights: tuple[float, ...]


def _entries(wanted: ComparisonRequest) -> Iterator[Compared]:
    """Raises InputError: none, one twice, steps of what is no run, a weight that cannot be."""
    if wrong := [w for w in wanted.weights if not abs(w) <= MOST_WEIGHT]:
        raise InputError(
            f"an adapter at weight {wrong[0]:g}", f"`weights` between -{MOST_WEIGHT:g} and {MOST_WEIGHT:g}"
        )
    if len(set(wanted.weights)) < len(wanted.weights):
        raise InputError("`weights` names one twice", "each once, such as 0.6,0.8,1")
    names = [name for written in wanted.adapters for name in _with_steps(written, wanted.steps)]
    seen: dict[Path, str] = {}
    for name, short in zip(names, shortened(names), strict=True):
        path = references.adapter_path(name)
        if not exists(path):
            raise InputError(absent(path, "adapter"), "name adapter files, run folders or RUN@STEP")
        run = references.run_of(path)
        file = subject.exported(run) if run and path == run else path
        if (resolved := real_path(file)) in seen:
            raise InputError(f"{name} is {seen[resolved]} once more", "name each adapter once")
        seen[resolved] = name
        yield Compared(name, short, file, adapters_in_use([AdapterWeight(file)])[0])
    if not names:
        raise InputError("there is nothing to compare", "name adapter files, run folders or RUN@STEP")


def shortened(names: Sequence[str]) -> list[str]:
    """Paths without the folders that all have in common; the last part always stays."""
    parts = [Path(name).parts for name in names]
    common = 0
    while all(len(one) > common + 1 for one in parts) and len({one[common] for one in parts}) == 1:
        common += 1
    return [str(Path(*one[common:])) if one else name for one, name in zip(parts, names, strict=True)]


def _with_steps(written: str, steps: tuple[int, ...] | Literal["all"]) -> list[str]:
    if not steps or "@" in Path(written).name:
        return [written]
    found = references.steps(Path(written))
    if not found:
        raise InputError(f"`steps`: {written} is no run that kept some", "name a run's folder, or leave `steps` out")
    return [f"{written}@{step}" for step in (found if steps == "all" else steps)]


def _one_base(wanted: ComparisonRequest, some: Sequence[Compared]) -> str:
    """Raises InputError: they were made for several bases, or nobody says for which."""
    said = {one.name: wanted.base or _base_of(one.file) for one in some}
    if unknown := [name for name, base in said.items() if not base]:
        raise InputError(f"{unknown[0]} does not say what base it was made for", "name it: `base`")
    if len(found := dict.fromkeys(said.values())) > 1:
        first, second = ((base, next(n for n, b in said.items() if b == base)) for base in list(found)[:2])
        raise InputError(
            f"{first[1]} was made for {first[0]}, {second[1]} for {second[0]}",
            "compare adapters of one base; or name the base that all shall be tried on: `base`",
        )
    return next(iter(found))


def _base_of(file: Path) -> str:
    return str(_recipe_of(file).get("base", ""))


def _recipe_of(file: Path) -> dict[str, Any]:
    """Of the run that an adapter lies in, else what the file carries."""
    run = references.run_of(file)
    hint = "compare its adapter file by itself: copy it out of the run"
    if run:
        return read_toml(run / RECIPE_FILE, InputError, hint)
    return toml_table(subject.recipe_in(file), f"{file}, finetune.recipe", InputError, hint)


def _subject(wanted: ComparisonRequest, base: str) -> tuple[subject.Subject | None, str]:
    """What the first adapter is judged by; or why none is."""
    try:
        first = wanted.adapters[0]
        name = _with_steps(first, wanted.steps)[0]
        data, judge = (Path(path) if path else None for path in (wanted.data, wanted.judge))
        return subject.of_path(Path(name), base, data, judge), ""
    except InputError as e:
        return None, f"not judged: {e.problem}"


def _plan(
    wanted: ComparisonRequest, some: Sequence[Compared], base: str, about: subject.Subject | None
) -> _Cells:  # fmt: skip
    info = families.detect(base)
    side = ((about and about.resolution) or info.resolution) // info.stride * info.stride
    guidance = info.guidance if about is None or about.guidance is None else about.guidance
    steps = STEPS if wanted.prompts else DENOISING_STEPS

    def requests(prompts: Sequence[str], columns: Sequence[Column]) -> tuple[SampleRequest, ...]:
        return tuple(SampleRequest(p, c.seed, "", steps, guidance, side, side)
                     for p, c in zip(prompts, columns, strict=True))  # fmt: skip

    bounds.check("sample.seed", wanted.seed, "seed")
    bounds.check("count", wanted.count, "count")
    bounds.check_pictures(len(wanted.prompts), wanted.count * (1 + len(some) * len(wanted.weights)))
    if not wanted.prompts:
        asked = _default_prompts(some, about)
        columns = tuple(Column(one.prompt, one.seed) for one in asked)
        same = requests([one.prompt for one in asked], columns)
        return _Cells(base, columns, same, tuple((one, same) for one in some), wanted.weights)
    columns = tuple(Column(p, wanted.seed + n) for p in wanted.prompts for n in range(wanted.count))
    filled = [written_out(SampleSet([c.prompt for c in columns]), [one.words]).prompts for one in some]
    of_adapters = tuple((one, requests(own, columns)) for one, own in zip(some, filled, strict=True))
    return _Cells(base, columns, of_adapters[0][1], of_adapters, wanted.weights)


def _default_prompts(some: Sequence[Compared], about: subject.Subject | None) -> list[Asked]:
    """Those of the verdict. Raises InputError: the training pictures are not known, or words differ."""
    if about is None:
        raise InputError("what the adapters were trained on is not known, so that there are no prompts",
                         "name some: `prompt`; or the training pictures: `data`")  # fmt: skip
    if len({(one.words.trigger, one.words.class_word) for one in some}) > 1:
        each = ", ".join(f"{one.short} {f'{one.words.trigger} {one.words.class_word}'.strip()!r}" for one in some)
        raise InputError(f"the adapters have different triggers and class words: {each}",
                         "name prompts for all of them: `prompt`, with {trigger} and {class_word}")  # fmt: skip
    asked = asked_of(about)
    return [*asked.with_trigger, *asked.without]


def _generate(plan: _Cells, store: PictureStore) -> Iterator[Event]:
    """What is not kept yet; the base is opened once, and adapters are exchanged in it."""
    due = [(applied, row, left) for applied, row, wanted in _applied(plan)
           if (left := [r for r in wanted if store.kept(row, r) is None])]  # fmt: skip
    if not due:
        return
    yield Stage("generating", sum(len(left) for *_, left in due))
    prompts = dict.fromkeys(r.prompt for *_, left in due for r in left)
    session, done = Session.open(plan.base, [*prompts, ""], (), store.options), 0
    for applied, row, left in due:
        session.exchange([applied] if applied else [])
        store.check(row, applied.path if applied else None)
        name, weight = (applied.path.name, applied.weight) if applied else ("", 1.0)
        for request, picture in zip(left, session.generate_many(left), strict=True):
            store.keep(row, request, picture.image, name, weight)
            done += 1
            yield Advanced(done)


def _applied(plan: _Cells) -> Iterator[tuple[AdapterWeight | None, str, tuple[SampleRequest, ...]]]:
    """What each row applies to the base, what its pictures are called by, and their requests; the base's row first."""
    yield None, BASE_ROW, plan.of_base
    for one, requests in plan.of_adapters:
        for weight in plan.weights:
            yield AdapterWeight(one.file, weight), row_id(one.file, weight), requests


def row_id(adapter: Path, weight: float) -> str:
    """In the names of an adapter's pictures; at weight 1 as the verdict names them."""
    return content_id(adapter) + ("" if weight == 1 else f"@{weight:g}")


def _rows(plan: _Cells, store: PictureStore) -> Iterator[ComparisonRow]:
    yield ComparisonRow(None, 0.0, plan.of_base, store.all(BASE_ROW, plan.of_base), "", {})
    for one, requests in plan.of_adapters:
        for weight in plan.weights:
            yield ComparisonRow(one, weight, requests, store.all(row_id(one.file, weight), requests), "", {})


def _scored(rows: Sequence[ComparisonRow], plan: _Cells, about: subject.Subject) -> Iterator[ComparisonRow]:
    """With scores, where at least two prompts have the adapter's trigger."""
    eyes, data = FeatureExtractor.load(about.judge), about.training.data
    yield rows[0]
    for row in rows[1:]:
        own, other = _split(row, data)
        if len(own) < 2:
            yield row
            continue
        aim = aim_of(data)
        asked = PromptSet(aim, *(tuple(_asked(row.requests[i], data) for i in some) for some in (own, other)))
        ours, theirs = (Painted(*([of.pictures[i] for i in some] for some in (own, other))) for of in (row, rows[0]))
        found = measure_pictures(eyes, asked, ours, theirs, data)
        yield row._replace(seen=verdict.seen(aim, found), scores=found.scores)


def _split(row: ComparisonRow, data: Dataset) -> tuple[list[int], list[int]]:
    """Columns whose prompts have the trigger, and the others."""
    trigger = data.trigger
    own = [i for i, r in enumerate(row.requests) if trigger is None or captions.mentions(r.prompt, trigger)]
    return own, [i for i in range(len(row.requests)) if i not in own]


def _asked(request: SampleRequest, data: Dataset) -> Asked:
    return Asked(request.prompt, request.seed, bare_caption(request.prompt, data))


def _chosen(rows: Sequence[ComparisonRow]) -> tuple[int | None, str]:
    """The best by the rule of evaluate.pick, and why."""
    usual = Evaluate()
    limits = Limits(usual.max_drift, usual.min_prompt, usual.max_memorisation)
    some = [Scored(n, row.seen, row.scores) for n, row in enumerate(rows) if row.scores]
    if not some:
        return None, "not judged: fewer than two prompts have the trigger"
    chosen = best(some, limits)
    return chosen.step, because(chosen, some, limits)


def _reservations(
    wanted: ComparisonRequest, rows: Sequence[ComparisonRow], about: subject.Subject
) -> Iterator[str]:  # fmt: skip
    """A sentence on what was not judged, and on what was judged by pictures that it was not trained on."""
    trigger = about.training.data.trigger
    unscored = dict.fromkeys(row.adapter.short for row in rows if row.adapter and not row.scores)
    if unscored and any(row.scores for row in rows):
        yield f"{', '.join(unscored)} not judged: fewer than two of its prompts have the trigger {trigger!r}"
    some = list(dict.fromkeys(row.adapter for row in rows if row.adapter))
    trained = {one.short: _recipe_of(one.file).get("data", {}).get("path") for one in some}
    first = trained[some[0].short]
    if others := [name for name, path in trained.items() if first and path and path != first and not wanted.data]:
        yield f"all are judged by the training pictures of {some[0].short}, but {', '.join(others)} had others"


def asked_json(wanted: ComparisonRequest) -> object:
    """What was asked, as JSON has it."""
    return json.loads(json.dumps(asdict(wanted)))


def as_json(found: Comparison, wanted: ComparisonRequest) -> dict[str, object]:
    """What was asked, each row with its scores, and the one to take."""
    return {
        "asked": asked_json(wanted),
        "base": shipped.public_name(found.base),
        "columns": [column._asdict() for column in found.columns],
        "rows": [
            {
                "adapter": row.adapter.name if row.adapter else None,
                "weight": row.weight if row.adapter else None,
                "seen": row.seen,
                "scores": {name: score._asdict() for name, score in row.scores.items()},
            }
            for row in found.rows
        ],
        "best": None if found.best is None else found.rows[found.best].label,
        "why": found.why,
    }
