"""Captions by a model of transformers that reads pictures: BLIP, Florence-2, and those that take instructions."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune import reading
from finetune.captioning.captioner import Answer, screened
from finetune.captioning.cleaning import cleaned
from finetune.data.images import decode
from finetune.data.text.wording import CaptionWords
from finetune.errors import BaseError, DataError
from finetune.families import fetch_from_hub
from finetune.families.folder import chat_form
from finetune.families.parts import without_bars
from finetune.machine import current_device

MAX_TOKENS = 64
"""that an answer may have: a sentence"""
LONGEST_PX = 1024
"""a longer side is reduced to this: models whose tokens grow with the picture would take minutes on a photo"""
INSTRUCTION = "Describe this image in one short sentence: what it shows, and where."
"""for models with a chat template"""
USUAL_PROMPTS = {"florence2": "<CAPTION>"}
"""the usual prompt of models that have fixed ones"""
FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
PROMPTLESS = "vision-encoder-decoder"
_AGAIN = "give the folder or hub id of an image-to-text model, such as Salesforce/blip-image-captioning-base"


class CaptionModel:
    """Greedy answers of a model, a batch of pictures at a time, cleaned by what the pictures show."""

    batch = 8

    def __init__(self, model: str, words: CaptionWords, prompt: str = "") -> None:
        """model: a folder, or a hub id. prompt: what it is asked; empty: what is usual for it.

        Raises:
            BaseError: it is not there, is no captioner, or cannot be loaded.
            DataError: it takes no prompt.
        """
        folder = located(model)
        self.type, self.words = _type_of(folder), words
        if prompt and self.type == PROMPTLESS:
            raise DataError(f"{model} takes no prompt: it can only describe each picture", "leave out `prompt`")
        self.processor: Any = _processor(folder, self.type)
        self.model: Any = _model(folder)
        self.chat = bool(getattr(self.processor, "chat_template", None))
        self.prompt = prompt or (INSTRUCTION if self.chat else USUAL_PROMPTS.get(self.type, ""))
        if not self.model.config.is_encoder_decoder:
            self.processor.tokenizer.padding_side = "left"  # an answer goes on where its prompt ends

    def check(self, files: Sequence[Path]) -> None:
        """It says itself what it cannot do, with the first batch."""

    def __call__(self, files: Sequence[Path]) -> list[Answer]:
        return [self._answer(text) for text in self.said(files)]

    def said(self, files: Sequence[Path]) -> list[str]:
        """What the model itself says of each picture.

        Raises:
            BaseError: the model does not take the prompt.
        """
        inputs = self._inputs([_reduced(file) for file in files])
        with torch.no_grad():
            tokens = self.model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=MAX_TOKENS)
        answers = without_prompt(tokens, inputs.get("input_ids"))
        texts: list[str] = self.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return texts

    def _answer(self, text: str) -> Answer:
        answer = screened(Answer(text))
        return answer if answer.problem else cleaned(answer.text, self.words)

    def _inputs(self, pictures: Sequence[Any]) -> Any:
        given: dict[str, Any] = {"images": list(pictures), "return_tensors": "pt"}
        if self.prompt:
            given |= {"text": [self._asked()] * len(pictures), "padding": True}
        try:
            inputs = self.processor(**given)
        except (ValueError, TypeError, KeyError) as e:
            raise BaseError(
                f"the model does not take the prompt {self.prompt!r}: {str(e).splitlines()[0]}", "leave out `prompt`"
            ) from e
        floats = {
            k: v.to(self.model.dtype) for k, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()
        }
        inputs.update(floats)
        return inputs.to(self.model.device)

    def _asked(self) -> str:
        if not self.chat:
            return self.prompt
        content = [{"type": "image"}, {"type": "text", "text": self.prompt}]
        asked = [{"role": "user", "content": content}]
        return chat_form(self.processor, asked)


def _reduced(file: Path) -> Any:
    picture = decode.open_rgb(file)
    picture.thumbnail((LONGEST_PX, LONGEST_PX))
    return picture


def without_prompt(tokens: Tensor, prompt: Tensor | None) -> Tensor:
    """(n, tokens) without the prompt (n, p), where the model repeats it before its answer."""
    if prompt is None:
        return tokens
    length = prompt.shape[1]
    return tokens[:, length:] if torch.equal(tokens[:, :length], prompt) else tokens


def located(model: str, hint: str = _AGAIN) -> Path:
    """The folder of a model; a hub id (`org/name`, or `org/name@revision`) is fetched or found in the hub's cache.

    Raises:
        BaseError: there is none.
    """
    if reading.is_dir(Path(model)):
        return Path(model)
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?", model):
        raise BaseError(f"there is no folder {model}", hint)
    return Path(fetch_from_hub(model, FILES))


def _type_of(folder: Path) -> str:
    """Which model it is, of those that caption; read here, as transformers would ask whether to run a model's code."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CAPTIONERS

    file = folder / "config.json"
    found = reading.read_json(file, BaseError, _AGAIN, finite=False).get("model_type")
    if found not in CAPTIONERS:
        raise BaseError(f"{folder} is not a supported captioning model: its type is {found}", _AGAIN)
    refuse_pickled(folder)
    return str(found)


def refuse_pickled(folder: Path) -> None:
    """Raises BaseError: a model's folder has no weights, or only such as could run code."""
    if not any(folder.glob("*.safetensors")):
        pickled = next((p.name for p in sorted(folder.iterdir()) if p.suffix in (".bin", ".pt", ".pth")), "")
        why = f"pickled weights only ({pickled}), which can run code when opened: refused" if pickled else "no weights"
        raise BaseError(f"{folder} holds {why}", "take the safetensors version of this model")


def _processor(folder: Path, kind: str) -> Any:
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES as PROCESSORS

    if kind not in PROCESSORS:
        return _Pair(loaded_part("AutoImageProcessor", folder), loaded_part("AutoTokenizer", folder))
    return loaded_part(PROCESSORS[kind], folder, without_films=find_spec("torchvision") is None)


class _Pair:
    """The picture's and the text's side of a model that has no processor of its own."""

    def __init__(self, pictures: Any, tokenizer: Any) -> None:
        self.pictures, self.tokenizer = pictures, tokenizer

    def __call__(self, images: Sequence[Any], **options: Any) -> Any:
        return self.pictures(images, return_tensors="pt")


def _model(folder: Path) -> Any:
    """In bf16 on a GPU, else in fp32."""
    device = current_device()
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    with torch.random.fork_rng(devices=[]):
        model, info = loaded_part(
            "AutoModelForImageTextToText", folder, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    if missing := sorted(info["missing_keys"]):
        raise BaseError(f"{folder}: {len(missing)} of the model's tensors are missing, {missing[0]} first", _AGAIN)
    return model.to(device).eval()


def loaded_part(name: str, folder: Path, without_films: bool = False, hint: str = _AGAIN, **options: Any) -> Any:
    """What a class of transformers, by name, makes of a model's folder; none of the model's own code is run.

    Raises:
        BaseError: it cannot be loaded.
    """
    import transformers

    try:
        with without_bars():
            kind = getattr(transformers, name)
            loaded = _without_films(kind) if without_films else kind
            return loaded.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **options)
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, AttributeError, ImportError) as e:
        reason = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise BaseError(f"{folder} cannot be loaded as a {name}: {reason}", hint) from e


def _without_films(processor: Any) -> Any:
    """The processor without the part that reads films, which needs torchvision."""
    parts = [part for part in processor.get_attributes() if part != "video_processor"]
    return type(processor.__name__, (processor,), {"get_attributes": classmethod(lambda _: parts)})
