"""A run up to its first step: the base opened, the dataset encoded, the adapter attached."""

import dataclasses
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import nn

from finetune import families, optimizers
from finetune.adapters import attach as adapters
from finetune.adapters.change import AdapterState
from finetune.encoding.images import Wanted, encode_images
from finetune.encoding.masks import NO_MASKS, Masks, encode_masks
from finetune.encoding.store import Store, default_root
from finetune.encoding.text import Captions, encode_texts
from finetune.errors import RecipeError, action
from finetune.evaluation.effect import Latents
from finetune.events import Advanced, Event, Note, Returned, Stage, unheard
from finetune.families.base import BaseInfo, Family, checkpoint_gradients, large_encoders
from finetune.files import layouts
from finetune.files.peft import peft_config
from finetune.machine import CPU, DTYPES, Device, meet, open_machine
from finetune.planning.plan import Plan
from finetune.planning.spread import is_spread
from finetune.proof import export, outputs
from finetune.proof.verify import shape_mismatches
from finetune.recipe.resolved import ResolvedObjective
from finetune.shortage import out_of_memory
from finetune.training import batches, levers
from finetune.training.folder import RunFolder, Unwritten, run_identity, shapes
from finetune.training.gradients import Gradients
from finetune.training.look import prompts, wanted
from finetune.training.loop import State
from finetune.training.objective import RootModule
from finetune.unchanged import unchanged


class Encoded(NamedTuple):
    """What the frozen encoders made of the dataset."""

    latents: Latents
    batches: batches.Batches
    captions: Captions
    masks: Masks = NO_MASKS


@dataclass
class Run:
    """All that a run holds while it trains."""

    plan: Plan
    folder: RunFolder
    device: Device
    family: Family
    data: Encoded
    state: State

    @property
    def exported_step(self) -> int:
        """The last one, or the one that was picked."""
        return self.state.step if self.folder.picked is None else self.folder.picked


def begin(plan: Plan) -> Run:
    """Up to the first step, with no folder: nothing is written but the cache, which is where encoded images stay.

    Raises:
        FinetuneError: what is wrong with base, data or machine.
    """
    return unheard(beginning(plan, open_machine(plan.recipe.train.precision, is_spread(plan, meet().world_size))))


def beginning(plan: Plan, device: Device, folder: RunFolder | None = None) -> Generator[Event, None, Run]:
    """The same, telling how far it is; the folder is given the run's identity."""
    with out_of_memory("while the base is loaded", lambda: levers.loading(plan.recipe)):
        family = open_base(plan)
    plan = _known(plan, family.facts)
    with out_of_memory("while the dataset is encoded", lambda: levers.encoding(plan.recipe)):
        data = yield from encode_dataset(plan, family, device)
    start = plan.recipe.adapter.init_from
    with unchanged(layouts.adapter_files(start) if start else ()):
        if folder is not None:
            folder.identity = run_identity(plan, family)  # before attaching: of the base as it was
        family.parts.release(*large_encoders(family))
        with out_of_memory("while the base is made ready", lambda: levers.training(plan.recipe)):
            state = attach_adapter(plan, family, device)
    if folder is not None:
        folder.identity["trained parameters"] = shapes(state.trainable)
    return Run(plan, folder or Unwritten(Path(os.devnull)), device, family, data, state)


def _known(plan: Plan, facts: BaseInfo) -> Plan:
    """With what the base told when it was loaded. Raises BaseError: what it predicts is not known."""
    families.refuse_unknown(plan.recipe.base, facts)
    objective = ResolvedObjective.of(plan.recipe.objective, prediction=facts.prediction)
    recipe = plan.recipe.model_copy(update={"objective": objective})
    return dataclasses.replace(plan, facts=facts, recipe=recipe)


def open_base(plan: Plan) -> Family:
    """The base as it is trained: in the run's precision, its times drawn as the recipe says."""
    return families.load(
        plan.recipe.base, DTYPES[plan.recipe.train.precision], plan.facts, plan.recipe.objective,
        plan.recipe.data.text_encoder_bits, plan.recipe.train.base_bits,
    )  # fmt: skip


def encode_dataset(plan: Plan, family: Family, device: Device) -> Generator[Event, None, Encoded]:
    """Images, and captions by each text encoder that is not trained, from the cache or now; then the encoders leave the
    device.

    Raises:
        RunError: the cache cannot be written.
    """
    store = Store(plan.recipe.data.cache or default_root())
    pictures = device.ranks.rotated(wanted(plan))
    frozen = [encoder for encoder in family.encoders if encoder not in plan.recipe.adapter.components]
    shown = [*prompts(plan), *(outputs.PROMPTS if large_encoders(family) else ())]
    texts = device.ranks.rotated(list({prompt.key: prompt for prompt in shown}.values())) if frozen else []
    yield Stage("encoding images", len(pictures))
    family.parts.load("vae").to(device.device, "vae")
    latents = yield from _advancing(encode_images(store, family, pictures, device.device))
    masks = yield from _masks(plan, store, family.facts, pictures)
    known = {}
    for encoder in frozen:
        yield Stage(f"encoding captions, {encoder}" if len(frozen) > 1 else "encoding captions", len(texts))
        family.parts.load(encoder).to(device.device, encoder)
        known[encoder] = yield from _advancing(encode_texts(store, family, encoder, texts))
        family.parts.to(CPU, encoder)
    family.parts.to(CPU, "vae")
    yield Note(f"cache: {store.hits} found, {store.misses} encoded, in {store.root}")
    captions = Captions(family, known, device.device)
    return Encoded(latents, batches.Batches(plan, family, latents, captions, masks), captions, masks)


def _masks(
    plan: Plan, store: Store, facts: BaseInfo, pictures: Sequence[Wanted]
) -> Generator[Event, None, Masks]:  # fmt: skip
    """Of the images that have one, where what is outside counts for less."""
    outside = plan.recipe.data.mask_outside
    masked = [] if outside == 1 else [one for one in pictures if one.example.mask]
    if not masked:
        return NO_MASKS
    yield Stage("averaging masks", len(masked))
    cells = yield from _advancing(encode_masks(store, facts, masked))
    return Masks(cells, outside if isinstance(outside, float) else 0.0)


def _advancing(done: Generator[int, None, Returned]) -> Generator[Advanced, None, Returned]:
    while True:
        try:
            yield Advanced(next(done))
        except StopIteration as e:
            returned: Returned = e.value
            return returned


def attach_adapter(plan: Plan, family: Family, device: Device) -> State:
    """The adapter in the model, the model on the device, an optimizer over what is trained."""
    config = plan.recipe
    names = adapters.component_names(config.adapter, family.denoiser_name)
    trained = {name: family.parts[name] for name in names}
    adapters.check_ranks(trained, family.presets, config.adapter)
    trainable = adapters.attach(trained, family.presets, config.adapter, config.train.seed)
    adapters.start_from(trained, start_of(plan, family))
    used = dict.fromkeys([family.denoiser_name, *names])
    for component in used if not device.shards else ():  # of spread weights, each rank takes its own
        family.parts[component].to(device.device)
    for component in names:
        family.parts[component].train()
    if config.train.gradient_checkpointing:
        checkpoint_gradients(family, used)
    if config.train.compile:
        # what torch.compile makes is kept between runs
        root = config.data.cache or default_root()
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "inductor"))
        family.parts.compile(family.denoiser_name)
    rates = optimizers.rates(config.optimizer, list(trainable))
    optimizer = optimizers.build(config.optimizer, [(c, list(p.values()), rates[c]) for c, p in trainable.items()])
    configs, objective = _configs(trained), RootModule(family, config, used)
    prepared, optimizer = device.prepare(objective, optimizer, objective.units())
    if device.shards:
        trainable = adapters.trained_in(trained)
    state = State(trainable, optimizer, prepared, scaler=device.scaler, configs=configs)
    if device.ranks.world_size > 1 and not device.shards:
        state.gradients = Gradients(state.parameters, also=3)
    if config.train.ema:
        state.ema = [p.detach().clone() for p in state.parameters]
    return state


def _configs(trained: Mapping[str, nn.Module]) -> dict[str, dict[str, object]]:
    """What a checkpoint says of each component's adapter."""
    changes = {name: adapters.read_changes({name: module}) for name, module in trained.items()}
    return {name: peft_config(read) for name, read in changes.items() if read}


def start_of(plan: Plan, family: Family) -> AdapterState:
    """What adapter.init_from holds; nothing without it.

    Raises:
        RecipeError: it cannot be read whole for this base.
    """
    path = plan.recipe.adapter.init_from
    if path is None:
        return {}
    places = export.base_sites(plan.recipe.base)
    found = layouts.read_adapter(path, places, family.name)
    problems = [*found.problems, *shape_mismatches(found.modules, places)]
    if problems or not found.modules:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RecipeError(
            f"adapter.init_from: {path.name}: {(problems or ['it holds no changes'])[0]}{more}",
            "see all that is wrong with it",
            action("verify", file=path, base=plan.recipe.base),
        )
    # readers' sake puts zero changes into files of ours
    return {name: change for name, change in found.modules.items() if not change.is_zero()}
