"""What the user wrote, typed and frozen: read from TOML and `--set`, checked whole, torch never imported.

Every problem is reported at once, each with its key path and the nearest right name.
"""

import difflib
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finetune import shipped
from finetune.errors import RecipeError

Component = Literal["denoiser", "text_encoder"]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Loose = Field(strict=False)  # TOML has neither paths nor tuples


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
    flip: bool = False
    """mirror half of the visits; never for products with text or logos"""
    caption_dropout: Share = 0.05
    """share of visits with the empty caption, which guidance needs"""
    allow_uncaptioned: bool = False
    """images without a caption get the template, even when others have captions"""
    cache: Annotated[Path, Loose] | None = None
    """where encoded images and captions are kept. Default: the user's cache folder"""


class Prior(Table):
    mode: Literal["off", "images", "self"] = "off"
    """off; a folder of class images; or the base's own prediction with the adapter off"""
    path: Annotated[Path, Loose] | None = None
    prompt: Annotated[str, Field(min_length=1)] | None = None
    """caption of class images that have none. Default: "a photo of CLASS" """
    weight: Annotated[float, Field(gt=0, le=10)] = 1.0


class Adapter(Table):
    method: Literal["lora", "full"] = "lora"
    components: Annotated[tuple[Component, ...], Field(strict=False, min_length=1)] = ("denoiser",)
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[float, Field(gt=0)] | None = None
    """the adapter is scaled by alpha / rank. Default: rank"""
    dropout: Share = 0.0
    targets: str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = "attention"
    """a preset (attention, attention+ff, all) or patterns of denoiser module names; each must match"""
    text_encoder_targets: str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = "attention"
    """the same for the text encoder"""
    ranks: dict[str, Annotated[int, Field(ge=1, le=1024)]] = Field(default_factory=dict)
    """pattern -> another rank for the modules it matches; their alpha / rank stays the same"""


LORA_ONLY = ("rank", "alpha", "dropout", "targets", "text_encoder_targets", "ranks")


class Objective(Table):
    prediction: Literal["auto", "epsilon", "v"] = "auto"
    """what the base predicts: detected; if written, it must agree"""
    min_snr: Annotated[float, Field(gt=0)] | None = None
    """gamma of min-SNR weighting, arXiv:2303.09556; usually 5. Default: off"""


class Optimizer(Table):
    name: Literal["adamw", "adamw8bit"] = "adamw"
    learning_rate: Annotated[float, Field(ge=0)] = 1e-4
    text_encoder_learning_rate: Annotated[float, Field(ge=0)] | None = None
    """Default: learning_rate"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    beta1: Share = 0.9
    beta2: Share = 0.999
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Count = 0
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    """longest gradient, over all trained parameters together; 0: off"""


class Train(Table):
    steps: Positive | None = None
    """optimizer steps; or say epochs. Default: 1000 steps"""
    epochs: Positive | None = None
    batch: Positive = 1
    accumulate: Positive = 1
    """batches an optimizer step"""
    seed: Count = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    """torch.compile the denoiser: minutes at first, faster steps after"""
    checkpoint_every: Positive = 250
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
    steps: Positive = 20
    guidance: Annotated[float, Field(ge=0)] = 7.5
    seed: Count = 0


class Export(Table):
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    layouts: Annotated[tuple[Literal["universal", "diffusers", "merged"], ...], Loose] = ("universal",)
    """the PEFT directory is always written"""
    title: str = ""
    license: str = ""


class Recipe(Table):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] | None = None
    """of the adapter file. Default: the output folder's name"""
    base: Annotated[str, Field(min_length=1)]
    """`pocket`, a diffusers folder, a hub id (with @revision), or a .safetensors checkpoint"""
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
    sources = {key: "file" for key, _ in _leaves(raw)}
    problems: list[str] = []
    for item in overrides:
        key = _override(raw, item, problems)
        sources[key] = "--set"
        rival = {"train.steps": "train.epochs", "train.epochs": "train.steps"}.get(key, "")
        if sources.get(rival) == "file":  # the nearer word wins; two --set would be a contradiction
            del sources[rival], raw["train"][rival.partition(".")[2]]
    problems += _conflicts(raw)
    recipe = None
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as e:
        problems += [_say(error, raw) for error in e.errors(include_url=False)]
    if problems or recipe is None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError(f"{origin}: {count}\n  " + "\n  ".join(problems), "`finetune recipes show pocket-product`")
    return Loaded(recipe, sources, origin)


def find(path: Path) -> Path:
    """A file as it is, or the shipped recipe of that name.

    Raises:
        RecipeError: neither exists.
    """
    if path.is_file():
        return path
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
    if recipe.prior.mode == "off":
        del tables["prior"]
    if recipe.adapter.method == "full":
        tables["adapter"] = {k: v for k, v in tables["adapter"].items() if k not in LORA_ONLY}
    return tomlkit.dumps(tables)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as e:
        raise RecipeError(f"{path} is not UTF-8 text (byte {e.start})", "save it as UTF-8") from e
    except OSError as e:
        raise RecipeError(f"cannot read {path}: {e.strerror}") from e
    except tomllib.TOMLDecodeError as e:
        raise RecipeError(f"{path} is not TOML: {e}", 'text needs quotes: key = "value"') from e


def _override(raw: dict[str, Any], item: str, problems: list[str]) -> str:
    key, equals, text = item.partition("=")
    key = key.strip()
    if not equals or not key:
        problems.append(f"--set {item!r}: write it as table.key=value")
        return key
    *tables, last = key.split(".")
    table = raw
    for name in tables:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            problems.append(f"--set {key}: {name!r} is a value, not a table")
            return key
        table = inner
    try:
        table[last] = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        table[last] = text.strip()
    return key


def _conflicts(raw: dict[str, Any]) -> list[str]:
    """Settings that contradict each other, found on the raw tables so that they show beside type errors."""

    def table(name: str) -> dict[str, Any]:
        found = raw.get(name, {})
        return found if isinstance(found, dict) else {}

    train, prior, adapter, data = table("train"), table("prior"), table("adapter"), table("data")
    found = []
    if "steps" in train and "epochs" in train:
        found.append("train.steps and train.epochs decide the same thing: keep one")
    mode = prior.get("mode", "off")
    if mode == "images" and "path" not in prior:
        found.append('prior.path: missing; prior.mode = "images" needs a folder of class images')
    if mode != "images" and "path" in prior:
        found.append(f'prior.path: has no effect with prior.mode = "{mode}"; write mode = "images"')
    if mode == "off" and ("weight" in prior or "prompt" in prior):
        found.append('prior: weight and prompt have no effect with mode = "off"')
    if mode == "self" and "prompt" in prior:
        found.append('prior.prompt: has no effect with mode = "self", which takes each caption without the trigger')
    if mode == "self" and "trigger" not in data and not str(data.get("path", "")):
        found.append('prior.mode = "self" needs data.trigger')
    if adapter.get("method") == "full":
        found += [f'adapter.{k}: has no effect with adapter.method = "full"' for k in LORA_ONLY if k in adapter]
        if mode == "self":
            found.append('prior.mode = "self" needs an adapter that can be switched off: adapter.method = "lora"')
    return found


def _say(error: Any, raw: dict[str, Any]) -> str:
    path = [str(p) for p in error["loc"]]
    known = list(keys())
    tables = {k.partition(".")[0] for k in known}
    where = ".".join(p for p in path if not p.startswith(("function-", "constrained-", "tuple[", "lax-or-strict")))
    match error["type"]:
        case "extra_forbidden":
            return f"{where}: no such key{_nearest(where, path, known, tables)}"
        case "missing":
            return f"{where}: missing"
        case "literal_error":
            return f"{where}: {error['input']!r} is not one of {_choices(path)}"
        case _:
            detail = error["msg"][0].lower() + error["msg"][1:]
            return f"{where}: {detail}, got {error['input']!r}"


def _nearest(where: str, path: list[str], known: list[str], tables: set[str]) -> str:
    """The nearest right name: in the same table first, then the same last word anywhere, then anything alike."""
    inside = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == ".".join(path[:-1])]
    inside += sorted(tables) if len(path) == 1 else []
    near = difflib.get_close_matches(path[-1], inside, 1)
    if near:
        return f"; did you mean {near[0]!r}?"
    elsewhere = {k.rpartition(".")[2]: k for k in reversed(known)}
    near = difflib.get_close_matches(path[-1], elsewhere, 1)
    return f"; did you mean {elsewhere[near[0]]!r}?" if near else ""


def _choices(path: list[str]) -> str:
    kind: Any = Recipe
    for part in path:
        if isinstance(kind, type) and issubclass(kind, BaseModel) and part in kind.model_fields:
            kind = kind.model_fields[part].annotation
    while get_origin(kind) is not Literal:
        kind = get_args(kind)[0]
    return ", ".join(repr(c) for c in get_args(kind))


def _leaves(raw: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    known = set(keys())
    for name, found in raw.items():
        if isinstance(found, dict) and f"{prefix}{name}" not in known:
            yield from _leaves(found, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", found
