"""No dead options: every key of the recipe, changed, changes something that can be seen."""

import copy
import hashlib
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from support.bases import tiny_base

from finetune import recipe
from finetune import resources as shipped
from finetune import tensors as weights
from finetune.adapters import attach as adapters
from finetune.adapters.lora import Lora
from finetune.errors import FinetuneError, RecipeError, TrainError
from finetune.evaluation import subject
from finetune.events import Picked, Sampled, Saved, Score, Scored, Validated, unheard
from finetune.families.base import Family, Moments, components
from finetune.files import layouts
from finetune.planning import footprint
from finetune.planning import plan as planning
from finetune.planning.plan import Plan
from finetune.planning.spread import is_spread
from finetune.proof import export
from finetune.reporting import trackers
from finetune.training import batches, begin, finish, learnt, pick, preflight
from finetune.training import loop as trainer
from finetune.training import samples as pictures
from finetune.training.begin import Run, open_base
from finetune.training.folder import RunFolder
from finetune.training.loop import State
from finetune.training.run import loop
from finetune.training.stop import Interruption

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
FEW = 'adapter.targets=["to_q"]'
"""makes it quick"""
TEXT = 'adapter.components=["denoiser", "text_encoder"]'


class Place:
    """Folders and bases that the cases name, and the things that are dear to make."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.loaded: dict[str, Family] = {}
        for name, seed in (("one", 0), ("other", 1)):
            tiny_base(root / name, "sd15", seed)
        for name in ("flux", "schnell"):
            tiny_base(root / name, name)
        place = next(n for n in export.base_sites(str(root / "one")) if n.endswith("attn1.to_q"))
        out, inside = export.base_sites(str(root / "one"))[place]
        tensors = layouts.universal({place: Lora(torch.ones(2, inside), torch.ones(out, 2), 0.1)}, torch.float32, "sd")
        weights.write_tensors(tensors, root / "start.safetensors", {})
        images = {"a.png": (64, 64), "b.png": (128, 64), "c.png": (64, 150)}
        for folder in ("photos", "half", "tagged"):
            for i, (name, size) in enumerate(images.items()):
                text = None if folder == "half" and i else f"photo {i} of a mug"
                text = f"mug {i}, red, round, table, morning" if folder == "tagged" else text
                self._image(root / folder / name, size, i, text)
        for name, size in images.items():
            self._image(root / "masked" / name, size, 7, f"a mug {name}")
            (root / "masked" / "masks").mkdir(exist_ok=True)
            Image.linear_gradient("L").resize(size).save(root / "masked" / "masks" / name)
        self._image(root / "mugs" / "d.png", (80, 80), 5, None)
        self._image(root / "cups" / "e.png", (80, 80), 6, None)

    def load(self, sets: list[str]) -> recipe.Loaded:
        path = self.root / "recipe.toml"
        path.write_text(f'base = "{self.root}/one"\n[data]\npath = "{self.root}/photos"\nresolution = 64\n')
        return recipe.load(path, [item.replace("ROOT", str(self.root)) for item in sets])

    def plan(self, sets: list[str]) -> Plan:
        return planning.resolve_plan(self.load(sets))

    def family(self, plan: Plan) -> Family:
        bits = (plan.recipe.data.text_encoder_bits, plan.recipe.train.base_bits)
        name = f"{plan.recipe.base} {plan.recipe.train.precision} {plan.recipe.objective} {bits}"
        if name not in self.loaded:
            self.loaded[name] = open_base(plan)
            self.loaded[name].parts.load()
        return copy.deepcopy(self.loaded[name])

    def begin(self, plan: Plan) -> Run:
        """Everything but the loop."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(begin, "open_base", self.family)
            return begin.begin(plan)

    def _image(self, path: Path, size: tuple[int, int], seed: int, caption: str | None) -> None:
        path.parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption)


# --- what can be seen, the cheapest first ----------------------------------------------------------------------------


def what_is_planned(place: Place, sets: list[str]) -> object:
    """Captions, buckets, steps and the order of the samples; or what was refused."""
    try:
        plan = place.plan(sets)
    except FinetuneError as e:
        return e.problem
    pools = [plan.train, *([plan.prior] if plan.prior else [])]
    shown = [[(p.example.digest, p.example.caption, p.bucket) for p in pool.placed] for pool in pools]
    order = [plan.train.schedule.step(k, total=plan.micros) for k in range(3)]
    return shown, [p.example.name for p in plan.held_out], plan.steps, plan.samples, order


def what_is_trained(place: Place, sets: list[str]) -> object:
    return [row._replace(optimizer_bytes=0) for row in footprint.component_footprints(place.plan(sets))]


def what_is_asked_of_the_sampler(place: Place, sets: list[str]) -> object:
    return pictures.requests(place.plan(sets))


def what_a_verdict_is_asked(place: Place, sets: list[str]) -> object:
    plan = place.plan(sets)
    judge = subject.judge_for(plan.recipe.base, plan.recipe.evaluate.judge, plan.data)
    return judge and learnt.subject_of(plan, place.root / "mug.safetensors", place.root, judge, None)


def how_the_model_is_set_up(place: Place, sets: list[str]) -> object:
    compiled: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda module, **_: compiled.append(module) or module)
        family = place.begin(place.plan([*sets, FEW])).family
    return len(compiled), [
        bool(getattr(m, "gradient_checkpointing", False)) for m in components(family)["unet"].modules()
    ]


def where_latents_are_kept(place: Place, sets: list[str]) -> object:
    shutil.rmtree(place.root / "kept", ignore_errors=True)
    place.begin(place.plan([*sets, FEW]))
    return sorted(p.name for p in (place.root / "kept").rglob("*") if p.is_file())


def whether_two_ranks_spread_the_weights(place: Place, sets: list[str]) -> object:
    return is_spread(place.plan(sets), 2)


def what_two_steps_make_of_the_weights(place: Place, sets: list[str]) -> object:
    """The trained weights, bit by bit, and the losses and names of the samples on the way."""
    plan = place.plan([*sets, FEW, "train.steps=2"])
    run = place.begin(plan)
    share = run.data.batches.step(0, run.device.ranks)
    steps = list(trainer.train(run.state, run.data.batches, plan.recipe, run.device))
    found = hashlib.sha256()
    for parameter in run.state.parameters:
        found.update(parameter.detach().float().numpy().tobytes())
    return found.hexdigest(), [s.loss for s in steps], [batch.names for batch, _ in share.pairs]


def what_is_allowed(place: Place, sets: list[str]) -> object:
    try:
        place.plan(sets)
    except RecipeError as e:
        return str(e)
    return "all"


def what_the_running_mean_is(place: Place, sets: list[str]) -> object:
    return place.begin(place.plan([*sets, FEW])).state.ema is not None


def after_how_many_bad_steps_it_stops(place: Place, sets: list[str]) -> object:
    plan = place.plan([*sets, FEW])
    run = place.begin(plan)
    spoilt = {k: Moments(m.mean * torch.nan, m.logvar) for k, m in run.data.latents.items()}
    bad = batches.Batches(plan, run.family, spoilt, run.data.captions)
    with pytest.raises(TrainError):
        list(trainer.train(run.state, bad, plan.recipe, run.device))
    return run.state.step


def what_happens_in_the_loop(place: Place, sets: list[str]) -> object:
    """The steps at which it saves, validates and samples, and the checkpoints left."""
    plan = place.plan([*sets, FEW, "train.steps=4", "sample.steps=1", 'sample.prompts=["a mug"]', "sample.guidance=1"])
    out = place.root / f"run-{len(list(place.root.glob('run-*')))}"
    run = place.begin(plan)
    run.folder = RunFolder(out)
    run.folder.identity = {"base": "0" * 64}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "measure", lambda *_: preflight.Measured(0.0, 0, 0.0))
        patch.setattr(pick, "score", scored_by_step)
        told = [*loop(run, Interruption(out)), *pick.pick(run)]
    at = [(type(e).__name__, e.step) for e in told if isinstance(e, Saved | Validated | Sampled | Scored | Picked)]
    return at, sorted(p.name for p in (out / "checkpoints").iterdir())


def scored_by_step(subject: object, step: int, painter: object) -> Generator[Scored, None, Scored]:
    """A little more alike at the second step, which may be chance, at a price that rises."""
    values = {"likeness": min(0.6 + 0.1 * step, 0.8), "drift": 0.1 * step, "prompt": 1 - 0.2 * step,
              "memorisation": 0.2 * step}  # fmt: skip
    told = Scored(step, "1/4", {name: Score(v, v - 0.2, v + 0.2) for name, v in values.items()})
    yield told
    return told


def what_is_written(place: Place, sets: list[str]) -> object:
    """Names, dtypes and metadata of the exported files."""
    plan = place.plan([*sets, FEW, "adapter.rank=1"])
    out = place.root / f"made-{len(list(place.root.glob('made-*')))}"
    family = place.family(plan)
    trained = {n: family.parts[n] for n in adapters.component_names(plan.recipe.adapter, "unet")}
    adapters.attach(trained, family.presets, plan.recipe.adapter, 0)
    modules = {n: m._replace(up=m.up + 0.01) for n, m in adapters.read_changes(components(family)).items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "verify", lambda *_: None)
        patch.setattr(finish, "_passed", lambda *_: None)
        patch.setattr(finish, "final_sheet", lambda *_: out)
        patch.setattr(finish, "illustrate", lambda *_: None)
        folder = RunFolder(out / "mug")
        folder.identity = {"base": "0" * 64}
        run = Run(plan, folder, None, family, None, State({}, None))  # type: ignore[arg-type]
        unheard(finish.export_adapter(run, modules, None))  # type: ignore[arg-type]
    files = sorted(p for p in (out / "mug" / "adapter").rglob("*") if p.is_file() and "peft" not in p.parts)
    heads = [weights.read_header(p) for p in files if p.parent.name == "adapter" and p.suffix == ".safetensors"]
    told = [{k: v for k, v in h.metadata.items() if k in ("modelspec.title", "modelspec.license")} for h in heads]
    return [p.name for p in files], [set(h.dtypes.values()) for h in heads], told


def what_trackers_are_told(place: Place, sets: list[str]) -> object:
    """Which are opened, and of what project."""
    opened: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trackers.Trackers, "begin", lambda _, to, run: opened.append((to, run.project)))
        run_folder = RunFolder(place.root / "told")
        run_folder.path.mkdir(exist_ok=True)
        run_folder.begin(place.plan(sets))
    return opened


# --- the table -------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """One --set, others that both sides need, and where the difference shows."""

    change: str
    see: Callable[[Place, list[str]], object] = what_two_steps_make_of_the_weights
    beside: tuple[str, ...] = ()


FLOW = ("base=ROOT/flux",)
SELF = ("prior.mode=own_prediction", "data.trigger=sks")
IMAGES = ("prior.mode=images", "prior.path=ROOT/mugs", "data.class_word=mug")
JUDGED = (f"evaluate.judge={shipped.EYES}",)
STOPPED = (*JUDGED, "evaluate.every=1", "evaluate.stop=auto")
PICKED = (*JUDGED, "evaluate.every=1", "evaluate.pick=best")
TAGS = ("data.path=ROOT/tagged", "data.caption_dropout=0")
CASES = {
    "name": Case("name=other", what_is_written),
    "base": Case("base=ROOT/other"),
    "data.path": Case("data.path=example:product", what_is_planned),
    "data.trigger": Case("data.trigger=sks", what_is_planned),
    "data.class_word": Case("data.class_word=mug", what_is_planned, ("data.trigger=sks",)),
    "data.resolution": Case("data.resolution=128", what_is_planned),
    "data.max_aspect": Case("data.max_aspect=1", what_is_planned, ("base=pocket", "data.resolution=128")),
    "data.crop": Case("data.crop=random"),
    "data.flip": Case("data.flip=true"),
    "data.caption_dropout": Case("data.caption_dropout=0.9"),
    "data.shuffle_tags": Case("data.shuffle_tags=true", beside=TAGS),
    "data.keep_tags": Case("data.keep_tags=2", beside=(*TAGS, "data.shuffle_tags=true")),
    "data.tag_dropout": Case("data.tag_dropout=0.5", beside=TAGS),
    "data.caption_variants": Case("data.caption_variants=1", beside=(*TAGS, "data.shuffle_tags=true")),
    "data.mask_outside": Case("data.mask_outside=0.5", beside=("data.path=ROOT/masked",)),
    "data.allow_uncaptioned": Case(
        "data.allow_uncaptioned=true", what_is_planned, ("data.path=ROOT/half", "data.class_word=mug")
    ),
    "data.text_encoder_bits": Case("data.text_encoder_bits=8", beside=FLOW),
    "data.cache": Case("data.cache=ROOT/kept", where_latents_are_kept),
    "prior.mode": Case("prior.mode=own_prediction", beside=("data.trigger=sks",)),
    "prior.path": Case("prior.path=ROOT/cups", what_is_planned, IMAGES),
    "prior.prompt": Case("prior.prompt=a mug", what_is_planned, IMAGES),
    "prior.weight": Case("prior.weight=5.0", beside=IMAGES),
    "adapter.method": Case("adapter.method=full", what_is_trained),
    "adapter.components": Case(TEXT, what_is_trained),
    "adapter.rank": Case("adapter.rank=3", what_is_trained, ("adapter.alpha=16",)),
    "adapter.alpha": Case("adapter.alpha=4"),
    "adapter.dropout": Case("adapter.dropout=0.5"),
    "adapter.targets": Case("adapter.targets=all", what_is_trained),
    "adapter.text_encoder_targets": Case("adapter.text_encoder_targets=all", what_is_trained, (TEXT,)),
    "adapter.ranks": Case('adapter.ranks={"to_q" = 2}', what_is_trained),
    "adapter.init_from": Case("adapter.init_from=ROOT/start.safetensors"),
    "objective.prediction": Case("objective.prediction=v", what_is_planned),
    "objective.min_snr": Case("objective.min_snr=1.0"),
    "objective.timestep_density": Case("objective.timestep_density=uniform", beside=FLOW),
    "objective.logit_mean": Case("objective.logit_mean=1.0", beside=FLOW),
    "objective.logit_std": Case("objective.logit_std=0.5", beside=FLOW),
    "objective.shift": Case("objective.shift=5.0", beside=FLOW),
    "objective.guidance": Case("objective.guidance=3.5", beside=FLOW),
    "objective.distilled": Case("objective.distilled=true", what_is_allowed, ("base=ROOT/schnell",)),
    "optimizer.name": Case("optimizer.name=adamw8bit", beside=("adapter.rank=200",)),
    "optimizer.learning_rate": Case("optimizer.learning_rate=1e-3"),
    "optimizer.text_encoder_learning_rate": Case("optimizer.text_encoder_learning_rate=1e-3", beside=(TEXT,)),
    "optimizer.schedule": Case("optimizer.schedule=linear"),
    "optimizer.warmup_steps": Case("optimizer.warmup_steps=2"),
    "optimizer.clip_norm": Case("optimizer.clip_norm=0.001"),
    "optimizer.weight_decay": Case("optimizer.weight_decay=0.5"),
    "optimizer.beta1": Case("optimizer.beta1=0.5"),
    "optimizer.beta2": Case("optimizer.beta2=0.5"),
    "optimizer.epsilon": Case("optimizer.epsilon=1e-3"),
    "optimizer.beta2_decay": Case("optimizer.beta2_decay=-0.5", beside=("optimizer.name=adafactor",)),
    "optimizer.clip_threshold": Case("optimizer.clip_threshold=2.0", beside=("optimizer.name=adafactor",)),
    "train.steps": Case("train.steps=7", what_is_planned),
    "train.epochs": Case("train.epochs=2", what_is_planned),
    "train.batch": Case("train.batch=2"),
    "train.accumulate": Case("train.accumulate=2"),
    "train.seed": Case("train.seed=1"),
    "train.precision": Case("train.precision=bf16"),
    "train.base_bits": Case("train.base_bits=4"),
    "train.gradient_checkpointing": Case("train.gradient_checkpointing=true", how_the_model_is_set_up),
    "train.ema": Case("train.ema=0.9", what_the_running_mean_is),
    "train.compile": Case("train.compile=true", how_the_model_is_set_up),
    "train.shard": Case("train.shard=on", whether_two_ranks_spread_the_weights),
    "train.checkpoint_every": Case("train.checkpoint_every=1", what_happens_in_the_loop),
    "train.keep_last": Case("train.keep_last=1", what_happens_in_the_loop, ("train.checkpoint_every=1",)),
    "train.patience": Case("train.patience=2", after_how_many_bad_steps_it_stops),
    "validation.count": Case("validation.count=1", what_is_planned),
    "validation.every": Case("validation.every=3", what_happens_in_the_loop, ("validation.count=1",)),
    "sample.every": Case("sample.every=4", what_happens_in_the_loop),
    "sample.prompts": Case('sample.prompts=["a {trigger}"]', what_is_asked_of_the_sampler, ("data.trigger=sks",)),
    "sample.negative": Case("sample.negative=blurry", what_is_asked_of_the_sampler),
    "sample.steps": Case("sample.steps=3", what_is_asked_of_the_sampler),
    "sample.guidance": Case("sample.guidance=2", what_is_asked_of_the_sampler),
    "sample.seed": Case("sample.seed=9", what_is_asked_of_the_sampler),
    "evaluate.prompts": Case('evaluate.prompts=["a jar"]', what_a_verdict_is_asked, JUDGED),
    "evaluate.judge": Case(JUDGED[0], what_a_verdict_is_asked),
    "evaluate.count": Case("evaluate.count=7", what_a_verdict_is_asked, JUDGED),
    "evaluate.every": Case("evaluate.every=2", what_happens_in_the_loop, JUDGED),
    "evaluate.pick": Case('evaluate.pick="best"', what_happens_in_the_loop, (*JUDGED, "evaluate.every=1")),
    "evaluate.stop": Case("evaluate.stop=auto", what_happens_in_the_loop, STOPPED[:-1]),
    "evaluate.patience": Case("evaluate.patience=1", what_happens_in_the_loop, STOPPED),
    "evaluate.max_drift": Case("evaluate.max_drift=0.1", what_happens_in_the_loop, PICKED),
    "evaluate.min_prompt": Case("evaluate.min_prompt=0.7", what_happens_in_the_loop, PICKED),
    "evaluate.max_memorisation": Case("evaluate.max_memorisation=0.3", what_happens_in_the_loop, PICKED),
    "export.dtype": Case("export.dtype=float16", what_is_written),
    "export.layouts": Case('export.layouts=["diffusers"]', what_is_written),
    "export.title": Case("export.title=My mug", what_is_written),
    "export.license": Case("export.license=CC0-1.0", what_is_written),
    "report.to": Case("report.to=[]", what_trackers_are_told),
    "report.project": Case("report.project=brand", what_trackers_are_told),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("options"))


@pytest.fixture(scope="module")
def seen_before() -> dict[object, object]:
    return {}


def test_every_key_of_the_recipe_has_a_case():
    assert list(CASES) == list(recipe.keys())
    assert all(case.change.partition("=")[0] == key for key, case in CASES.items())


@pytest.mark.parametrize("key", CASES)
def test_the_option_changes_what_can_be_seen(key: str, place: Place, seen_before):
    change, see, beside = CASES[key]
    if (see, beside) not in seen_before:
        seen_before[see, beside] = see(place, list(beside))
    before, after = seen_before[see, beside], see(place, [*beside, change])
    wanted, plain = place.load([*beside, change]).recipe, place.load(list(beside)).recipe
    assert recipe.value(wanted, key) != recipe.value(plain, key), "the case does not change the key"
    others = [k for k in recipe.keys() if recipe.value(wanted, k) != recipe.value(plain, k) and k != key]
    chosen = key in ("adapter.method", "prior.mode", "optimizer.name")  # a table's other keys come and go with its tag
    assert all(chosen and None in (recipe.value(wanted, k), recipe.value(plain, k)) for k in others), others
    assert after != before


@pytest.mark.parametrize("see", dict.fromkeys(case.see for case in CASES.values()), ids=lambda f: f.__name__)
def test_what_is_seen_is_the_same_when_nothing_changes(see, place: Place, seen_before):
    beside = next(case.beside for case in CASES.values() if case.see is see)
    assert see(place, list(beside)) == seen_before.get((see, beside), see(place, list(beside)))
