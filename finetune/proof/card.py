"""An adapter's model card, for people and for the Hugging Face hub: what it is, pictures, prompts, who reads it."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from finetune import families
from finetune import resources as shipped
from finetune import tensors as weights
from finetune.families.readers import DIFFUSERS
from finetune.files import metadata
from finetune.files.metadata import About

CARD, SHEET, PICTURES = "README.md", "sheet.png", "pictures"
"""in the adapter's folder: the card, the sheet of base and adapter, and the adapter's own pictures"""
_SHOWN = 6
"""prompts in a card, at most"""


class PromptExample(NamedTuple):
    """A prompt written out, and its picture in the adapter's folder."""

    prompt: str
    picture: str = ""
    """relative to the card; empty: none"""


def model_card(
    name: str, about: About, wanted: Sequence[str], examples: Sequence[PromptExample] = (), sheet: str = ""
) -> str:
    """README.md. wanted: the layouts that were written; sheet: relative to the card, empty for none.

    Raises:
        RunError: a text names this machine.
    """
    examples = examples[:_SHOWN]
    text = "\n".join([*_front(about, examples), *_body(name, about, wanted, examples, sheet)])
    metadata.refuse_local({CARD: text}, about, [one.prompt for one in examples])
    return text


def write_model_card(
    folder: Path, name: str, about: About, wanted: Sequence[str], prompts: Sequence[str] = (),
    sheet: Path | None = None, pictures: Sequence[Path] = (),
) -> Path:  # fmt: skip
    """The card, and beside it the sheet and the pictures of the prompts, so that the folder can be uploaded as it is.

    Raises:
        OSError: the folder cannot be written.
        RunError: a text names this machine.
    """
    if sheet:
        shutil.copyfile(sheet, folder / SHEET)
    shown = [f"{PICTURES}/{path.name}" for path in pictures[:_SHOWN]]
    for path, target in zip(pictures, shown, strict=False):
        (folder / PICTURES).mkdir(exist_ok=True)
        shutil.copyfile(path, folder / target)
    examples = [
        PromptExample(prompt, picture) for prompt, picture in zip(prompts, [*shown, *[""] * len(prompts)], strict=False)
    ]
    text = model_card(name, about, wanted, examples, SHEET if sheet else "")
    weights.write_bytes(text.encode(), folder / CARD)
    return folder / CARD


def readers(family: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """The programs that read the file that was written of an adapter for this family, with the version from which."""
    if "universal" not in wanted:
        return (DIFFUSERS.label,)
    kind = families.family_class(family)
    return tuple(reader.label for reader in kind.readers if kind.layout in reader.names)


def hub_id(base: str) -> str:
    """Of a base as a recipe writes it, without revision and added file; empty: it is not on the hub."""
    first = base.split(shipped.PLUS)[0].partition("@")[0]
    return first if first.count("/") == 1 else ""


def _front(about: About, examples: Sequence[PromptExample]) -> list[str]:
    """YAML that the hub reads; JSON is YAML, too."""
    lines = ["---", "library_name: diffusers", "pipeline_tag: text-to-image"]
    lines += ["tags: [text-to-image, diffusers, lora, template:sd-lora]"]
    lines += [f"base_model: {base}"] if (base := hub_id(about.base)) else []
    lines += [f"license: {json.dumps(about.license, ensure_ascii=False)}"] if about.license else []
    lines += [f"instance_prompt: {json.dumps(about.activation, ensure_ascii=False)}"] if about.trigger else []
    shown = [one for one in examples if one.picture]
    lines += ["widget:"] if shown else []
    for one in shown:
        lines += [f"- text: {json.dumps(one.prompt, ensure_ascii=False)}", "  output:", f"    url: {one.picture}"]
    return [*lines, "---", ""]


def _start(about: About) -> str:
    told = _text(about.parent_license) or "which says no licence"
    return f"another adapter: {told}" if about.parent or about.parent_license else ""


def _body(name: str, about: About, wanted: Sequence[str], examples: Sequence[PromptExample], sheet: str) -> list[str]:
    file = f"{name}.safetensors" if "universal" in wanted else f"{name}-diffusers.safetensors"
    lines = [f"# {about.title or name}", ""]
    if sheet:
        said = "The base model, and the same prompts and seeds with the adapter"
        lines += [f"![{said}]({sheet})", "", f"{said}.", ""]
    facts = [
        ("Base", about.base or about.line),
        ("Trigger", f"`{about.activation}`" if about.trigger else ""),
        ("Trained", f"{about.steps} steps on {about.dataset_images} images" if about.steps else ""),
        ("Images' licence", _text(about.dataset_license)),
        ("Started from", _start(about)),
        ("About", about.description),
    ]
    lines += [*(f"- {what}: {told}" for what, told in facts if told), ""]
    if about.dataset_credits:
        lines += [
            "## Credits",
            "",
            "It was trained on:",
            "",
            *(f"- {_text(one)}" for one in about.dataset_credits.split("\n")),
        ]
        lines += [""]
    if examples:
        lines += ["## Prompts", "", *(f"- `{one.prompt}`" for one in examples), ""]
    if {"universal", "diffusers"} & {*wanted}:
        lines += [
            "## Use",
            "",
            f"`{file}` works as it is, at weight 1, in {_listed(readers(about.family, wanted))}.",
            "",
        ]
        lines += _code(file, about, examples)
    return [*lines, "`peft/` is the lossless master, from which finetune exports any other layout.", ""]


def _text(line: str) -> str:
    """As it is read: names in a dataset make no links and no markup."""
    return re.sub(r"([\\`\[<])", r"\\\1", line)


def _code(file: str, about: About, examples: Sequence[PromptExample]) -> list[str]:
    base = hub_id(about.base) or "the folder of the base"
    prompt = examples[0].prompt if examples else about.activation or "a photo"
    return [
        "```python",
        "from diffusers import DiffusionPipeline",
        "",
        f'pipeline = DiffusionPipeline.from_pretrained("{base}")  # .to("cuda") on a GPU',
        f'pipeline.load_lora_weights(".", weight_name="{file}")',
        f"image = pipeline({json.dumps(prompt, ensure_ascii=False)}).images[0]",
        "```",
        "",
    ]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
