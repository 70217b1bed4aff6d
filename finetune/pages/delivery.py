"""What is sent on: the exported file, how large it is, and what its user writes into a prompt."""

from pathlib import Path
from typing import NamedTuple

from finetune import reading
from finetune.data.example import CARD
from finetune.errors import DataError
from finetune.reading import read_toml
from finetune.reporting.history import History
from finetune.resources import data_path

_SECOND = "-diffusers"
"""how the name of a file ends that is there beside the one for every program"""


class Delivery(NamedTuple):
    """The file that a run made, and how it is used."""

    name: str
    size: str
    place: str
    path: Path
    others: tuple[str, ...]
    """further files that hold the same"""
    trigger: str
    prompt: str
    """one that works, as the run itself asked"""
    whole: bool
    """it is a folder with a whole model, not an adapter"""


class DataWords(NamedTuple):
    """What a dataset's pictures are called."""

    trigger: str
    class_word: str
    kind: str


def delivery(history: History) -> Delivery | None:
    """None: it has written no file yet."""
    folder = history.folder / "adapter"
    files = sorted(folder.glob("*.safetensors"))
    whole = [one.parent for one in sorted(folder.glob("*/model_index.json"))]
    first = next((f for f in files if not f.stem.endswith(_SECOND)), next(iter(files), next(iter(whole), None)))
    if first is None:
        return None
    said = data_words(history)
    others = tuple(one.name for one in [*files, *whole] if one != first)
    return Delivery(first.name, size(_bytes(first)), str(first.parent.resolve()), first, others, said.trigger,
                    prompt_with(history, said), not files)  # fmt: skip


def data_words(history: History) -> DataWords:
    """As the recipe has them, else as the dataset's card does."""
    data = history.recipe.get("data", {})
    try:
        card = read_toml(data_path(Path(str(data.get("path", "")))) / CARD, DataError, "") if data.get("path") else {}
    except DataError:  # a raw folder has none; another has moved
        card = {}
    return DataWords(*(str(data.get(key) or card.get(key) or "") for key in DataWords._fields))


def prompt_with(history: History, said: DataWords) -> str:
    """A prompt of the run's own that has the trigger; else one made of the words."""
    asked = [str(one) for one in history.recipe.get("sample", {}).get("prompts", ())]
    own = next((one for one in asked if said.trigger and said.trigger in one), "")
    if own or not said.trigger:
        return own or next(iter(asked), "")
    return f"an image, {said.trigger} style" if said.kind == "style" else f"a photo of {said.trigger} {said.class_word}"


def size(count: int) -> str:
    """Such as "1.2 MB"."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"


def _bytes(path: Path) -> int:
    files = path.rglob("*") if reading.is_dir(path) else [path]
    return sum(one.stat().st_size for one in files if reading.is_file(one))
