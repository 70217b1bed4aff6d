"""Settings that contradict each other, or change nothing because of another: found on the tables as they were read.

So they show beside wrong types. What a chosen table does not have (a rank, of full fine-tuning) needs no rule here.
"""

from collections.abc import Iterator
from typing import Any, get_args

from finetune.recipe.schema import ComponentName, keys


def conflicts(raw: dict[str, Any]) -> list[str]:
    """Settings that contradict each other, found on the raw tables so that they show beside type errors."""
    train, prior, adapter = _tables(raw, "train", "prior", "adapter")
    found = []
    if "steps" in train and "epochs" in train:
        found.append("train.steps and train.epochs decide the same thing: keep one")
    if prior.get("mode") == "own_prediction" and adapter.get("method") == "full":
        found.append('prior.mode: "own_prediction" needs an adapter that can be switched off, adapter.method = "lora"')
    if _tables(raw, "data")[0].get("mask_outside") == "own_prediction" and adapter.get("method") == "full":
        found.append(
            'data.mask_outside: "own_prediction" needs an adapter that can be switched off, adapter.method = "lora"'
        )
    layouts = _tables(raw, "export")[0].get("layouts")
    if adapter.get("method") == "dora" and isinstance(layouts, list) and "universal" in layouts:
        found.append('export.layouts: adapter.method = "dora" has no universal file; "diffusers" and "merged" hold it')
    return found + [f"{key}: has no effect {why}" for key, why in idle(raw)]


def idle(raw: dict[str, Any]) -> list[tuple[str, str]]:
    """(key, why) of every written setting that changes nothing because of another one."""
    data, adapter, sample, evaluate = _tables(raw, "data", "adapter", "sample", "evaluate")
    full = adapter.get("method") == "full"
    components, guidance = adapter.get("components", ["denoiser"]), sample.get("guidance", 2)
    known = isinstance(components, list) and components and set(map(str, components)) <= set(get_args(ComponentName))
    no_denoiser = known and "denoiser" not in components
    no_text = known and not any(str(one).startswith("text_encoder") for one in components)
    edited = data.get("shuffle_tags", False) is not False or data.get("tag_dropout", 0) != 0
    rules = [
        (not edited, ("data.keep_tags", "data.caption_variants"), "without data.shuffle_tags or data.tag_dropout"),
        (full, ("train.base_bits",), 'with adapter.method = "full", which trains the weights themselves'),
        (full, ("export.layouts",), 'with adapter.method = "full", whose product is a pipeline'),
        (no_denoiser, ("adapter.targets",), "without the denoiser in adapter.components"),
        (
            no_text,
            ("adapter.text_encoder_targets", "optimizer.text_encoder_learning_rate"),
            "without a text encoder in adapter.components",
        ),
        (full, ("evaluate.every",), 'with adapter.method = "full", whose steps are not kept as files'),
        (evaluate.get("count") == 0, ("evaluate.every", "evaluate.prompts", "evaluate.judge"),
         "with evaluate.count = 0"),
        (evaluate.get("every", 0) == 0, ("evaluate.pick", "evaluate.stop"), "without evaluate.every"),
        (evaluate.get("stop", "off") == "off", ("evaluate.patience",), 'without evaluate.stop = "auto"'),
        (evaluate.get("pick", "last") == "last",
         ("evaluate.max_drift", "evaluate.min_prompt", "evaluate.max_memorisation"), 'without evaluate.pick = "best"'),
        (
            isinstance(guidance, int | float) and guidance <= 1,
            ("sample.negative",) if sample.get("negative") else (),
            "with sample.guidance at 1 or less",
        ),
    ]  # fmt: skip
    written = {key for key, _ in leaves(raw)}
    return list(
        {key: why for applies, keys_of, why in reversed(rules) if applies for key in keys_of if key in written}.items()
    )


def _tables(raw: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    """Tables by name, empty where there is none."""
    return [found if isinstance(found := raw.get(name), dict) else {} for name in names]


def leaves(raw: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """(key path, value) of every value in tables as they were read."""
    known = set(keys())
    for name, found in raw.items():
        if isinstance(found, dict) and f"{prefix}{name}" not in known:
            yield from leaves(found, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", found
