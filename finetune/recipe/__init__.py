"""What the user wrote, typed and frozen: read from TOML and `--set`, checked whole, torch never imported.

Every problem is reported at once, each with its key path and the nearest right name.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from finetune import resources as shipped
from finetune.errors import RecipeError

Component = Literal["denoiser", "text_encoder", "text_encoder_2"]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, lt=1)]
Loose = Field(strict=False)  # TOML has neither paths nor tuples


def _patterns(found: object) -> object:
    several = found if isinstance(found, list | tuple) else [found]
    if not several or not all(isinstance(one, str) and one for one in several):
        raise ValueError("needs the name of a preset, or a list of module name patterns")
    return found if isinstance(found, str) else tuple(several)


Patterns = Annotated[str | tuple[str, ...], BeforeValidator(_patterns)]


class Table(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Table):
    path: Annotated[Path, Loose]
    """a prepared dataset or a folder of images; `example:product` and `example:style` are bundled"""
    trigger: Annotated[str, Field(min_length=1)] | None = None
    """the word that calls the subject or style; injected once into captions that lack it"""
    class_word: Annotated[str, Field(min_length=1)] | None = None
    """what the subject is (mug, dog): captions are written with it where there are none"""
    resolution: Annotated[int, Field(ge=16, le=8192)] | None = None
    """px; buckets hold this squared. Default: the base's own"""
    max_aspect: Annotated[float, Field(ge=1, le=4)] = 2.0
    """longest side / shortest side of the most extreme bucket; 1 gives square crops only"""
    crop: Literal["center", "random"] = "center"
    """where the window lies along the cropped axis: in the middle, or at one of five places by chance"""
    flip: bool = False
    """mirror half of the visits; never for products with text or logos"""
    caption_dropout: Share = 0.05
    """share of visits with the empty caption, which guidance needs"""
    allow_uncaptioned: bool = False
    """images without a caption get the template, even when others have captions"""
    text_encoder_bits: Literal[4, 8] | None = None
    """of the weights of a large text encoder (T5, a language model) while it reads the captions; needs bitsandbytes"""
    cache: Annotated[Path, Loose] | None = None
    """where encoded images and captions are kept. Default: the user's cache folder"""


class Prior(Table):
    mode: Literal["off", "images", "self"] = "off"
    """off; a folder of class images; or the base's own prediction with the adapter off"""
    path: Annotated[Path, Loose] | None = None
    """the folder of class images"""
    prompt: Annotated[str, Field(min_length=1)] | None = None
    """caption of class images that have none. Default: "a photo of CLASS" """
    weight: Annotated[float, Field(gt=0, le=10)] = 1.0
    """what the prior's loss counts beside the training loss"""


class Adapter(Table):
    method: Literal["lora", "full"] = "lora"
    """low-rank change, or all weights"""
    components: Annotated[tuple[Component, ...], Field(strict=False, min_length=1)] = ("denoiser",)
    """what is trained: denoiser, text_encoder, or both; of SDXL also text_encoder_2"""
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """of the change; more holds more, and overfits sooner"""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """the adapter is scaled by alpha / rank. Default: rank"""
    dropout: Share = 0.0
    """share of the adapter's input switched off at each step"""
    targets: Patterns = "attention"
    """a preset (attention, attention+ff, all) or patterns of denoiser module names; each must match"""
    text_encoder_targets: Patterns = "attention"
    """the same for the text encoders"""
    ranks: dict[str, Annotated[int, Field(ge=1, le=1024)]] = Field(default_factory=dict)
    """pattern -> another rank for the modules it matches; their alpha / rank stays the same"""
    init_from: Annotated[Path, Loose] | None = None
    """an adapter to go on from, of any program; each of its modules must be a target, of no larger rank"""


LORA_ONLY = ("rank", "alpha", "dropout", "targets", "text_encoder_targets", "ranks", "init_from")
ALSO_CALLED = {
    "batch_size": "train.batch",
    "dim": "adapter.rank",
    "ema_decay": "train.ema",
    "epoch": "train.epochs",
    "gamma": "objective.min_snr",
    "grad_accum": "train.accumulate",
    "gradient_accumulation_steps": "train.accumulate",
    "instance_prompt": "data.trigger",
    "load_in_4bit": "train.base_bits",
    "lora": "adapter",
    "lr": "optimizer.learning_rate",
    "lr_scheduler": "optimizer.schedule",
    "max_grad_norm": "optimizer.clip_norm",
    "max_train_steps": "train.steps",
    "mixed_precision": "train.precision",
    "model": "base",
    "network_alpha": "adapter.alpha",
    "network_dim": "adapter.rank",
    "pretrained_model_name_or_path": "base",
    "quantize": "train.base_bits",
    "r": "adapter.rank",
    "save_every": "train.checkpoint_every",
    "snr_gamma": "objective.min_snr",
    "token": "data.trigger",
    "train_batch_size": "train.batch",
    "use_ema": "train.ema",
    "unet_lr": "optimizer.learning_rate",
}
"""names by which other trainers know our keys"""


class Objective(Table):
    prediction: Literal["auto", "epsilon", "v", "flow"] = "auto"
    """what the base predicts: detected; if written, it must agree"""
    min_snr: Annotated[float, Field(gt=0)] | None = None
    """gamma of min-SNR weighting, arXiv:2303.09556; usually 5. Default: off"""
    density: Literal["auto", "uniform", "logit_normal"] = "auto"
    """of a flow base: where on the path training looks, arXiv:2403.03206. auto: logit_normal"""
    logit_mean: float | None = None
    """of logit_normal; above 0 looks more at noise. Default: 0"""
    logit_deviation: Annotated[float, Field(gt=0)] | None = None
    """of logit_normal. Default: 1"""
    shift: Annotated[float, Field(gt=0, le=100)] | None = None
    """of a flow base: above 1 looks more at noise, after the density. Default: the base's own, which may grow with the
    resolution"""
    guidance: Annotated[float, Field(ge=0)] | None = None
    """the scale that a base with a guidance embedding (FLUX.1 dev) is told while it trains. Default: 1"""
    distilled: bool = False
    """train a distilled base, which may undo what was distilled into it"""


class Optimizer(Table):
    name: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps its state in a quarter of the memory, and needs bitsandbytes"""
    learning_rate: Annotated[float, Field(ge=0)] = 1e-4
    """at its peak; never rescaled by batch or ranks"""
    text_encoder_learning_rate: Annotated[float, Field(ge=0)] | None = None
    """Default: learning_rate"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's, decoupled from the gradient"""
    beta1: Share = 0.9
    """decay of the mean of gradients"""
    beta2: Share = 0.999
    """decay of the mean of their squares"""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """added to the divisor"""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "constant"
    """of the learning rate after the warm-up: linear, cosine and, in its last fifth, wsd end at 0"""
    warmup_steps: Count = 0
    """steps in which the learning rate rises to its peak"""
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    """longest gradient, over all trained parameters together; 0: off"""


class Train(Table):
    steps: Positive | None = None
    """optimizer steps; or say epochs. Default: 1000 steps"""
    epochs: Positive | None = None
    """times every image is seen at least; instead of steps"""
    batch: Positive = 1
    """images a forward pass, on each rank"""
    accumulate: Positive = 1
    """batches an optimizer step"""
    seed: Seed = 0
    """of every random choice"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """of the arithmetic; what is trained stays float32. auto: bf16 or fp16 on a GPU, fp32 on a CPU"""
    base_bits: Literal[4] | None = None
    """of the frozen denoiser's weights (nf4): down to a quarter of the memory; needs bitsandbytes. Default: all"""
    gradient_checkpointing: bool = False
    """less memory for slower steps"""
    ema: Share = 0.0
    """decay of a running mean of what is trained: that mean is then sampled and exported; 0: off, usually 0.999"""
    compile: bool = False
    """torch.compile the denoiser: minutes at first, faster steps after"""
    checkpoint_every: Positive = 250
    """steps"""
    keep_last: Positive = 2
    """checkpoints kept"""
    patience: Positive = 3
    """non-finite losses in a row before the run stops"""


class Validation(Table):
    count: Count = 0
    """images held out of training"""
    every: Positive = 100
    """steps between held-out losses, at the same noise for each image each time"""


class Sample(Table):
    every: Count = 0
    """steps between samples; 0: only at the end"""
    prompts: Annotated[tuple[str, ...], Loose] = ()
    """{trigger} stands for the trigger. Default: the first captions"""
    negative: str = ""
    """what the pictures should not show"""
    steps: Positive = 20
    """denoising steps"""
    guidance: Annotated[float, Field(ge=0)] | None = None
    """classifier-free guidance, or what a base with a guidance embedding is told; 1: none. Default: the base's usual"""
    seed: Seed = 0
    """of the first prompt; each further one adds 1"""


class Export(Table):
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """of the weights written; float32 loses nothing"""
    layouts: Annotated[tuple[Literal["universal", "diffusers", "merged"], ...], Loose] = ("universal",)
    """the PEFT directory is always written"""
    title: str = ""
    """shown by user interfaces. Default: the name"""
    license: str = ""
    """of the adapter, written into the file"""


class Recipe(Table):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] | None = None
    """of the adapter file. Default: the output folder's name"""
    base: Annotated[str, Field(min_length=1)]
    """`pocket`, a diffusers folder, a hub id (with @revision), or a .safetensors checkpoint; `BASE + FILE`: a base with
    the denoiser's weights from a file, in diffusers' or the original code's names, whatever else the file holds"""
    data: Data
    prior: Prior = Prior()
    adapter: Adapter = Adapter()
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    validation: Validation = Validation()
    sample: Sample = Sample()
    export: Export = Export()


class Loaded(NamedTuple):
    recipe: Recipe
    sources: dict[str, str]
    """key path -> "file" or "--set"; every other value is a default"""
    origin: Path


def load(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read a recipe (a file, or the name of a shipped one), then apply `table.key=value` overrides.

    Raises:
        RecipeError: names every wrong key and value at once.
    """
    origin = find(path)
    raw = _read(origin)
    problems: list[str] = []
    written = [_override(raw, item, problems) for item in overrides]
    for key, rival in (("train.steps", "epochs"), ("train.epochs", "steps")):
        if key in written and f"train.{rival}" not in written and isinstance(raw["train"], dict):
            raw["train"].pop(rival, None)  # the nearer word wins; two --set contradict each other
    sources = {key: "--set" if any(_within(key, w) for w in written) else "file" for key, _ in _leaves(raw)}
    problems += _conflicts(raw)
    recipe = None
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as e:
        problems += _sentences(e)
    if problems or recipe is None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        hint = "compare with a recipe that works: `finetune recipes show sd15-product`"
        raise RecipeError(f"{origin}: {count}\n  " + "\n  ".join(problems), hint)
    return Loaded(recipe, sources, origin)


def find(path: Path) -> Path:
    """A file as it is, or the shipped recipe of that name.

    Raises:
        RecipeError: neither exists.
    """
    if path.is_file():
        return path
    if path.is_dir():
        inside = sorted(path.glob("*.toml"))
        hint = f"did you mean {inside[0]}?" if inside else "`finetune recipes list` names the shipped ones"
        raise RecipeError(f"{path} is a folder, not a recipe", hint)
    names = {p.stem: p for p in sorted(shipped.RECIPES.glob("*.toml"))}
    if str(path) in names:
        return names[str(path)]
    near = difflib.get_close_matches(path.stem, names, 1)
    hint = f"did you mean {near[0]}?" if near else "`finetune recipes list` names the shipped ones"
    raise RecipeError(f"no recipe {path}: not a file, not a shipped recipe", hint)


def keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every key path of the schema, in order."""
    for name, field in model.model_fields.items():
        table = field.annotation
        if isinstance(table, type) and issubclass(table, BaseModel):
            yield from keys(table, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def value(recipe: Recipe, key: str) -> object:
    """The value at a key path."""
    found: object = recipe
    for part in key.split("."):
        found = getattr(found, part)
    return found


def replace(recipe: Recipe, **changes: object) -> Recipe:
    """The recipe with other values: `replace(r, train__steps=3)` sets train.steps."""
    for key, new in changes.items():
        *tables, last = key.split("__")
        if tables:
            table = getattr(recipe, tables[0]).model_copy(update={last: new})
            recipe = recipe.model_copy(update={tables[0]: table})
        else:
            recipe = recipe.model_copy(update={last: new})
    return recipe


def dumps(recipe: Recipe) -> str:
    """TOML that `load` reads back to the same recipe; settings that are off or have no effect are left out."""
    import tomlkit

    tables = recipe.model_dump(mode="json", exclude_none=True)
    for key, _ in _idle(tables):
        table, _, name = key.partition(".")
        del tables[table][name]
    if not recipe.adapter.ranks:
        tables["adapter"].pop("ranks", None)
    if recipe.train.epochs is not None:
        tables["train"].pop("steps", None)  # counted from the epochs, whose last step may be a short one
    return tomlkit.dumps(tables)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise RecipeError(f"{path} is not UTF-8 text (byte {e.start})", "save it as UTF-8") from e
    except OSError as e:
        raise RecipeError(f"cannot read {path}: {e.strerror}", "check its permissions") from e
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        line = re.search(r"line (\d+)", str(e))
        shown = f"\n  {text.splitlines()[int(line[1]) - 1].strip()}" if line else ""
        raise RecipeError(f"{path} is not TOML: {e}{shown}", _toml_hint(str(e))) from e


def _toml_hint(fault: str) -> str:
    if "Cannot" in fault:
        return "each key, and each [table], may be written once"
    if "backslash" in fault.lower() or "Unescaped" in fault or "hex" in fault:
        return r"in a path write / or \\, or put the text in single quotes"
    return 'key = value, one a line; text in quotes, "so"; true and false in small letters'


def _override(raw: dict[str, Any], item: str, problems: list[str]) -> str:
    """Set one value in the raw tables. Returns its key path, "" when there is none."""
    key, equals, text = item.partition("=")
    key, text = key.strip(), text.strip()
    *tables, last = key.split(".")
    if not equals or not all((*tables, last)):
        problems.append(f"--set {item!r}: write it as table.key=value")
        return ""
    table = raw
    for name in tables:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            problems.append(f"--set {key}: {name!r} is a value, not a table")
            return key
        table = inner
    try:
        read = tomllib.loads(f"x = {text}")
    except tomllib.TOMLDecodeError:
        read = {"x": text}
    if len(read) > 1:
        problems.append(f"--set {key}: more than one value in {text!r}: one --set for each")
    table[last] = read["x"]
    return key


def _within(key: str, written: str) -> bool:
    """A key path is the written one, lies in the written table, or is the table that holds it."""
    return bool(written) and (f"{key}.".startswith(f"{written}.") or f"{written}.".startswith(f"{key}."))


def _conflicts(raw: dict[str, Any]) -> list[str]:
    """Settings that contradict each other, found on the raw tables so that they show beside type errors."""
    train, prior, adapter, data, export = _tables(raw, "train", "prior", "adapter", "data", "export")
    found = []
    if "steps" in train and "epochs" in train:
        found.append("train.steps and train.epochs decide the same thing: keep one")
    if prior.get("mode") == "images" and "path" not in prior:
        found.append('prior.path: missing; prior.mode = "images" needs a folder of class images')
    if prior.get("mode") == "self" and adapter.get("method") == "full":
        found.append('prior.mode: "self" needs an adapter that can be switched off, adapter.method = "lora"')
    paths = {"data.path": data.get("path"), "data.cache": data.get("cache"), "prior.path": prior.get("path"),
             "adapter.init_from": adapter.get("init_from")}  # fmt: skip
    found += [f"{key}: must not be empty" for key, path in paths.items() if path == ""]
    for key, listed in (("adapter.components", adapter.get("components")), ("export.layouts", export.get("layouts"))):
        several = listed if isinstance(listed, list) else []
        twice = [one for i, one in enumerate(several) if several.index(one) < i]
        found += [f"{key}: {_shown(one)} is written twice" for one in twice]
    return found + [f"{key}: has no effect {why}" for key, why in _idle(raw)]


def _idle(raw: dict[str, Any]) -> list[tuple[str, str]]:
    """(key, why) of every written setting that changes nothing because of another one."""
    prior, adapter, validation, sample = _tables(raw, "prior", "adapter", "validation", "sample")
    mode, full = prior.get("mode", "off"), adapter.get("method") == "full"
    components, guidance = adapter.get("components", ["denoiser"]), sample.get("guidance", 2)
    known = isinstance(components, list) and components and set(map(str, components)) <= set(get_args(Component))
    no_denoiser = known and "denoiser" not in components
    no_text = known and not any(str(one).startswith("text_encoder") for one in components)
    rules = [
        (mode == "off", ("prior.path", "prior.prompt", "prior.weight"), 'with prior.mode = "off"'),
        (mode == "self", ("prior.path", "prior.prompt"), 'with prior.mode = "self", which needs no class images'),
        (full, (*(f"adapter.{name}" for name in LORA_ONLY), "train.base_bits"), 'with adapter.method = "full"'),
        (full, ("export.layouts",), 'with adapter.method = "full", whose product is a pipeline'),
        (no_denoiser, ("adapter.targets",), "without the denoiser in adapter.components"),
        (
            no_text,
            ("adapter.text_encoder_targets", "optimizer.text_encoder_learning_rate"),
            "without a text encoder in adapter.components",
        ),
        (validation.get("count", 0) == 0, ("validation.every",), "with validation.count = 0"),
        (
            isinstance(guidance, int | float) and guidance <= 1,
            ("sample.negative",) if sample.get("negative") else (),
            "with sample.guidance at 1 or less",
        ),
    ]
    written = {key for key, _ in _leaves(raw)}
    return list(
        {key: why for applies, idle, why in reversed(rules) if applies for key in idle if key in written}.items()
    )


def _tables(raw: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    """Tables by name, empty where there is none."""
    return [found if isinstance(found := raw.get(name), dict) else {} for name in names]


def _sentences(error: ValidationError) -> list[str]:
    """One sentence for each thing that is wrong."""
    found = []
    for fault in error.errors(include_url=False):
        if fault["type"] == "too_short" and fault["input"]:
            continue  # pydantic left the items out because each of them is wrong, and has been told
        where = ".".join(part for part in fault["loc"] if isinstance(part, str))
        found.append(f"{where}: {_fault(fault, where)}")
    return found


def _fault(fault: Any, where: str) -> str:
    got, limits = f", got {_shown(fault['input'])}", fault.get("ctx", {})
    match fault["type"]:
        case "extra_forbidden":
            return f"no such key{_nearest(where)}"
        case "missing":
            return f"missing; {_MISSING.get(where, 'it has no default')}"
        case "literal_error":
            near = difflib.get_close_matches(str(fault["input"]), choices := _choices(where), 1)
            meant = f"; did you mean {_shown(near[0])}?" if near else ""
            return f"{_shown(fault['input'])} is not one of {', '.join(map(_shown, choices))}{meant}"
        case "model_type":
            return f"is a table, [{where}] with its keys below{got}"
        case "value_error":
            return f"{fault['ctx']['error']}{got}"
        case "tuple_type" if isinstance(fault["input"], str):
            return f"needs a list: [{_shown(fault['input'])}]"
        case "string_too_short":
            return "must not be empty"
        case kind:
            needs = _NEEDS[kind].format(**limits) if kind in _NEEDS else fault["msg"][0].lower() + fault["msg"][1:]
            return f"{needs}{got}{_quotes(kind, fault['input'])}"


_NUMBER = r"\s*[-+]?[\d._]+([eE][-+]?\d+)?\s*"
_MISSING = {
    "base": "`pocket`, a diffusers folder, a hub id, or a .safetensors checkpoint",
    "data": 'a table: [data] with path = "the folder of your images"',
    "data.path": 'path = "the folder of your images"',
}
_NEEDS = {
    "bool_type": "needs true or false",
    "dict_type": "needs a table of pattern = rank",
    "finite_number": "needs a finite number",
    "float_type": "needs a number",
    "greater_than": "must be above {gt:.16g}",
    "greater_than_equal": "must be at least {ge:.16g}",
    "int_type": "needs a whole number",
    "less_than": "must be below {lt:.16g}",
    "less_than_equal": "must be at most {le:.16g}",
    "path_type": "needs a path, as text in quotes",
    "string_pattern_mismatch": "may have letters, digits, dots, - and _, and begins with a letter or a digit",
    "string_too_long": "must have at most {max_length} characters",
    "string_type": "needs text in quotes",
    "too_short": "must name at least one",
    "tuple_type": "needs a list",
}


def _quotes(kind: str, got: object) -> str:
    """Why text that looks right is wrong."""
    looks_right = {"int_type": _NUMBER, "float_type": _NUMBER, "bool_type": "true|false"}.get(kind)
    return ": leave out the quotes" if looks_right and isinstance(got, str) and re.fullmatch(looks_right, got) else ""


def _shown(found: object) -> str:
    """A value as TOML writes it, shortened."""
    text = json.dumps(found, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def _nearest(where: str) -> str:
    """The nearest right name: the same word elsewhere, one alike in the same table, what others call it, one alike."""
    *table, last = where.split(".")
    known = list(keys())
    if table:
        inside = {k.rpartition(".")[2]: k for k in known if k.startswith(f"{'.'.join(table)}.")}
    else:
        inside = {k.partition(".")[0]: k.partition(".")[0] for k in known}
    elsewhere = {k.rpartition(".")[2]: k for k in reversed(known)}
    if last in elsewhere:
        return f"; did you mean {elsewhere[last]}?"
    if last in ALSO_CALLED:
        return f"; did you mean {ALSO_CALLED[last]}?"
    for names in (inside, elsewhere):
        if near := difflib.get_close_matches(last, names, 1):
            return f"; did you mean {names[near[0]]}?"
    return ""


def _choices(where: str) -> list[str]:
    kind: Any = Recipe
    for part in where.split("."):
        kind = kind.model_fields[part].annotation
    while get_origin(kind) is not Literal:
        kind = get_args(kind)[0]
    return list(get_args(kind))


def _leaves(raw: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    known = set(keys())
    for name, found in raw.items():
        if isinstance(found, dict) and f"{prefix}{name}" not in known:
            yield from _leaves(found, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", found
