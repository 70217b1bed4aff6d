"""Files of other trainers that are about a folder or a whole set, not about a picture: read, or named with what to
write here in their place.

EveryDream lays small files into a folder: `multiply.txt`, a number, is how often its pictures are seen (not those of
its subfolders), which is a weight here. Settings of whole sets: dataset_config.toml (kohya's scripts, musubi-tuner),
dataset.toml (diffusion-pipe), concepts.json (OneTrainer), multidatabackend.json (SimpleTuner), a YAML (ai-toolkit).
"""

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune import reading
from finetune.data.attributes import LARGEST_WEIGHT, NO_ATTRIBUTES
from finetune.data.images.signatures import IMAGE_SUFFIXES
from finetune.data.text.caption_files import FoundCaptions
from finetune.data.text.tables import is_reserved
from finetune.data.text.texts import CAPTION_BYTES, text_in
from finetune.errors import DataError

MULTIPLY = "multiply.txt"
_MULTIPLY = (MULTIPLY, f"{MULTIPLY}.txt")
"""Windows hides the second ending."""
_EVERYDREAM = {
    "cond_dropout.txt": "write the share as data.caption_dropout into the recipe",
    "flip_p.txt": "write data.flip = true into the recipe, if the pictures may be mirrored",
    "shuffle_tags.txt": "write data.shuffle_tags = true into the recipe",
    "loss_scale.txt": "write a weight for its pictures in its place",
    "batch_id.txt": "pictures are put into batches by their shapes; leave it out",
} | dict.fromkeys(
    ("local.yaml", "local.yml", "global.yaml", "global.yml"),
    "write captions beside the pictures, and the rest into the recipe",
)
"""Files of a folder -> what to do instead; none of them says what pictures show"""
_SETTINGS = (".toml", ".json", ".yaml", ".yml")
SETTINGS_BYTES, _DEPTH = 1 << 20, 8
_BESIDE = ("dataset_config.toml", "dataset.toml", "config.toml", "concepts.json", "multidatabackend.json")
"""What is looked for beside the folder, too"""
_INSTEAD = {
    "num_repeats": "a weight of the source, as in photos:{0}", "balancing": "a weight of the source, as in photos:{0}",
    "class_tokens": "a trigger and a class word, or a template", "instance_prompt": "a template",
    "default_caption": "a template", "trigger_word": "the trigger", "prompt_path": "captions beside the pictures",
    "caption_extension": "captions in files that end in .txt", "caption_ext": "captions in files that end in .txt",
    "shuffle_caption": "data.shuffle_tags", "shuffle_tokens": "data.shuffle_tags",
    "enable_tag_shuffling": "data.shuffle_tags", "keep_tokens": "data.keep_tags = {0}",
    "keep_tags_count": "data.keep_tags = {0}", "caption_dropout_rate": "data.caption_dropout = {0}",
    "caption_tag_dropout_rate": "data.tag_dropout = {0}", "flip_aug": "data.flip", "flip_x": "data.flip",
    "enable_random_flip": "data.flip", "is_reg": "class images as prior.path", "mask_path": "a folder masks",
    "conditioning_data_dir": "a folder masks", "caption_prefix": "a template", "resolution": "data.resolution = {0}",
}  # fmt: skip
"""A setting of other trainers -> what is written here for it"""
_USUAL = ("", "0", "false", ".txt", "txt", ".caption", "caption")
"""Values, as they are shown, with which nothing is to be written"""
_ONCE = {"num_repeats": ("1",), "balancing": ("1",)}


class FolderFiles(NamedTuple):
    """What files about folders say."""

    weights: dict[str, float]
    """Picture -> its weight"""
    files: set[str]
    notes: list[str]
    problems: list[str]

    def added_to(self, captions: FoundCaptions) -> FoundCaptions:
        """A weight that is known of a picture otherwise goes before its folder's."""
        attributes = dict(captions.attributes)
        for name, weight in self.weights.items():
            own = attributes.get(name, NO_ATTRIBUTES)
            attributes[name] = own._replace(weight=weight if own.weight == 1.0 else own.weight)
        return captions._replace(
            attributes=attributes, files=captions.files | self.files, notes=(*captions.notes, *self.notes),
            problems=[*captions.problems, *self.problems],
        )  # fmt: skip


def read_folder_files(root: Path, names: Sequence[str]) -> FolderFiles:
    """Of the files among the names that no picture has for its caption, and of settings beside the folder."""
    found = FolderFiles({}, set(), settings_beside(root), [])
    some = [name for name in names if _may_be_settings(name)]
    pictures = {n for n in names if n.lower().endswith(IMAGE_SUFFIXES)} if some else set[str]()
    stems = pictures | {posixpath.splitext(n)[0] for n in pictures}
    for name in some:
        base = posixpath.basename(name).lower()
        if posixpath.splitext(name)[0] in stems:
            continue
        if base in _MULTIPLY:
            _multiply(root, name, pictures, found)
        elif instead := _EVERYDREAM.get(base):
            found.files.add(name)
            found.notes.append(f"{name} is a setting of EveryDream, and is not read: {instead}")
        elif base.endswith(_SETTINGS) and not is_reserved(name) and (note := settings_note(root / name, name)):
            found.files.add(name)
            found.notes.append(note)
    return found


def _may_be_settings(name: str) -> bool:
    base = name.rpartition("/")[2].lower()
    return base.endswith(_SETTINGS) or base in _MULTIPLY or base in _EVERYDREAM


def settings_beside(root: Path) -> list[str]:
    """Sentences on settings of other trainers that lie beside the folder, and name it."""
    home = reading.real_path(root)
    found = []
    for name in _BESIDE:
        told = _settings(home.parent / name) if reading.is_file(home.parent / name) else None
        if told and any(_last_part(value) == home.name for _, value in _pairs(told[1])):
            found.append(_said(f"{name} beside this folder", *told))
    return found


def settings_note(file: Path, name: str) -> str:
    """That a file holds settings of another trainer, and what to write for each; empty: it does not."""
    told = _settings(file)
    return _said(name, *told) if told else ""


def trainer_of(found: object) -> str:
    """Whose settings a TOML or JSON file holds; empty: nobody's that is known."""
    if isinstance(found, dict):
        if isinstance(found.get("datasets"), list):
            return "kohya's scripts"
        return "diffusion-pipe" if isinstance(found.get("directory"), list) else ""
    if isinstance(found, list) and found and all(isinstance(one, dict) for one in found):
        keys = {key for one in found for key in one}
        if "path" in keys and any(isinstance(one.get("text"), dict) or "balancing" in one for one in found):
            return "OneTrainer"
        if "id" in keys and keys & {"instance_data_dir", "dataset_type", "caption_strategy"}:
            return "SimpleTuner"
    return ""


def _multiply(root: Path, name: str, pictures: Iterable[str], found: FolderFiles) -> None:
    found.files.add(name)
    home = posixpath.dirname(name)
    inside = [n for n in pictures if posixpath.dirname(n) == home]
    try:
        written = text_in(root / name, most=CAPTION_BYTES).strip()
    except DataError as e:
        found.problems.append(e.problem.replace(str(root / name), name))
        return
    try:
        weight = float(written)
    except ValueError:
        weight = 0.0
    if not 0 < weight <= LARGEST_WEIGHT:
        found.problems.append(
            f"{name} holds {written[:40]!r}, and must hold how often the pictures of its folder are seen beside "
            f"others, as EveryDream has it: a number above 0, up to {LARGEST_WEIGHT:g}"
        )
        return
    found.weights.update(dict.fromkeys(inside, weight))
    where = f"{len(inside)} pictures of {home}" if home else f"the {len(inside)} pictures beside it"
    found.notes.append(f"{name} (EveryDream): {where} have the weight {weight:g}")


def _settings(file: Path) -> tuple[str, object] | None:
    """(whose settings a file holds, the settings)"""
    try:
        text = text_in(file, most=SETTINGS_BYTES)
        if file.name.lower().endswith(".toml"):
            found: object = reading.toml_table(text, str(file), DataError, "")
        elif file.name.lower().endswith(".json"):
            found = reading.json_value(text, str(file), DataError, "", finite=False)
        else:
            pairs = list(_yaml_pairs(text))
            return ("ai-toolkit", [{key: value} for key, value in pairs]) if _of_ai_toolkit(pairs) else None
    except DataError:
        return None
    whose = trainer_of(found)
    return (whose, found) if whose else None


def _yaml_pairs(text: str) -> Iterator[tuple[str, str]]:
    """The lines that give a key one value, at any depth; what they belong to is not told."""
    for line in text.split("\n"):
        key, colon, value = line.strip().removeprefix("-").strip().partition(":")
        if colon and key.isidentifier():
            yield key, value.partition(" #")[0].strip().strip("\"'")


def _of_ai_toolkit(pairs: Iterable[tuple[str, str]]) -> bool:
    keys = {key for key, _ in pairs}
    return "folder_path" in keys and bool(keys & {"job", "datasets", "process"})


def _pairs(found: object, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Settings at any place."""
    if depth > _DEPTH:
        return
    if isinstance(found, Mapping):
        for key, value in found.items():
            yield str(key), value
            yield from _pairs(value, depth + 1)
    elif isinstance(found, list):
        for one in found:
            yield from _pairs(one, depth + 1)


def _last_part(value: object) -> str:
    return posixpath.basename(value.replace("\\", "/").rstrip("/")) if isinstance(value, str) else ""


def _said(name: str, whose: str, found: object) -> str:
    said = dict[str, None]()
    for key, value in _pairs(found):
        shown = _shown(value)
        if key == "repeats" and shown.isdecimal() and shown != "0":  # SimpleTuner counts those after the first
            said[f"{key} {shown}: a weight of the source, as in photos:{int(shown) + 1}"] = None
        elif (instead := _INSTEAD.get(key)) and shown not in (*_USUAL, *_ONCE.get(key, ())):
            said[f"{key} {shown}: {instead.format(shown)}"] = None
    told = f"; write for {'; for '.join([*said][:8])}" if said else ""
    return f"{name} holds settings of {whose}, and is not read{told}"


def _shown(value: object) -> str:
    """As people write it; empty: it is no single value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}"
    return " ".join(value.split())[:40] if isinstance(value, str) and value not in ("null", "~") else ""
