"""What is wrong with a recipe, in sentences: each with its key path, what it needs, and the nearest right name."""

import difflib
import re
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from finetune.recipe.schema import Recipe, keys
from finetune.recipe.tables import members, shown, tagged

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


def sentences(error: ValidationError, model: type[Recipe] = Recipe) -> list[str]:
    """One sentence for each thing that is wrong with a recipe of this type."""
    found = []
    for fault in error.errors(include_url=False):
        if (fault["type"] == "too_short" and fault["input"]) or fault["type"] == "default_factory_not_called":
            continue  # it follows from another fault, which has been told
        path = [part for part in fault["loc"] if isinstance(part, str)]
        mark = tagged(Recipe.model_fields[path[0]]) if path[0] in Recipe.model_fields else None
        chosen = path.pop(1) if mark and len(path) > 1 else ""
        where = ".".join(path)
        found.append(f"{where}{_item(fault)}: {_fault(fault, where, chosen, model)}")
    return found


def _item(fault: Any) -> str:
    """Which one, where a list holds a wrong value of the right type, counted from 1."""
    last = fault["loc"][-1]
    return f", item {last + 1}" if isinstance(last, int) and fault["type"] == "value_error" else ""


def _fault(fault: Any, where: str, chosen: str, model: type[Recipe]) -> str:
    got = f", got {shown(fault['input'])}"
    match fault["type"]:
        case "extra_forbidden":
            return _no_such_key(where, chosen)
        case "missing":
            return f"missing; {_MISSING.get(where, 'it has no default')}"
        case "literal_error":
            near = difflib.get_close_matches(str(fault["input"]), choices := _choices(where, model), 1)
            meant = f"; did you mean {shown(near[0])}?" if near else ""
            return f"{shown(fault['input'])} is not one of {', '.join(map(shown, choices))}{meant}"
        case "model_type":
            return f"is a table, [{where}] with its keys below{got}"
        case "value_error":
            return f"{fault['ctx']['error']}{got}"
        case "tuple_type" if isinstance(fault["input"], str):
            return f"needs a list: [{shown(fault['input'])}]"
        case "string_too_short":
            return "must not be empty"
        case _:
            return needed(fault)


def needed(fault: Any) -> str:
    """What a value needs, by one of pydantic's errors, and what was given."""
    kind, got = fault["type"], fault["input"]
    limits = fault.get("ctx", {})
    needs = _NEEDS[kind].format(**limits) if kind in _NEEDS else fault["msg"][0].lower() + fault["msg"][1:]
    return f"{needs}, got {shown(got)}{_quotes(kind, got)}"


_NUMBER = r"\s*[-+]?[\d._]+([eE][-+]?\d+)?\s*"
_MISSING = {
    "base": "`pocket`, a diffusers folder, a hub id, or a .safetensors checkpoint",
    "data": 'a table: [data] with path = "the folder of your images"',
    "data.path": 'path = "the folder of your images"',
    "prior.path": 'prior.mode = "images" needs a folder of class images',
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


def _no_such_key(where: str, chosen: str) -> str:
    """Which choice the key belongs to, where another choice of the table has it; or the nearest right name."""
    table, _, last = where.partition(".")
    field = Recipe.model_fields.get(table)
    mark = tagged(field) if field else None
    if not (field and mark and chosen):
        return f"no such key{_nearest(where)}"
    tables = {mark.of(one): one for one in members(field)}
    here, tag = f"no such key with {table}.{mark.key} = {shown(chosen)}", f"{table}.{mark.key}"
    if owners := [shown(name) for name, one in tables.items() if last in one.model_fields]:
        return f"{here}; it belongs to {tag} = {' or '.join(owners)}"
    near = _nearest(where)
    key = near.removeprefix("; did you mean ").removesuffix("?")
    owners = [shown(name) for name, one in tables.items() if key in {f"{table}.{inner}" for inner in one.model_fields}]
    if not owners or shown(chosen) in owners:
        return f"{'no such key' if near else here}{near}"
    return f"{here}; did you mean {key}, of {tag} = {' or '.join(owners)}?"


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


def _choices(where: str, model: type[Recipe]) -> list[str]:
    """The words that a key may hold; of a key that chooses a table, those of every table."""
    tables: tuple[type[Any], ...] = (model,)
    *path, last = where.split(".")
    for part in path:
        tables = tuple(inner for table in tables for inner in members(table.model_fields[part]))
    words: list[str] = []
    for kind in [table.model_fields[last].annotation for table in tables if last in table.model_fields]:
        while get_origin(kind) is not Literal:
            kind = get_args(kind)[0]
        words += get_args(kind)
    return list(dict.fromkeys(words))
