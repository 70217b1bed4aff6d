"""What names of folders say of their pictures: kohya's repeats and caption (`10_sks mug`), and what is held out."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from finetune.choices import FolderNames
from finetune.data.attributes import LARGEST_WEIGHT, NO_ATTRIBUTES, Attributes

HELD_OUT_FOLDERS = frozenset(("validation", "valid", "val", "dev", "eval", "evaluation"))
TRAIN_FOLDERS = frozenset(("train", "training"))
TEST_FOLDERS = frozenset(("test", "testing"))
"""Held out only beside a folder of pictures to train on: alone it may be any folder's name."""
REGULARISATION = frozenset(("reg", "regs", "regularization", "regularisation", "reg_images", "regularization_images"))

_NUMBERED = re.compile(r"(\d+)_(.*\S.*)")
_CAMERA = re.compile(r"[1-9]\d\d_[A-Z0-9]{4}")
"""The folders of digital cameras (DCF): 100_PANA, 101_0412"""
_SHOWN = 5


class FolderReading(NamedTuple):
    """What folders say, by picture, and what was made of their names."""

    weights: dict[str, float]
    captions: dict[str, str]
    held_out: frozenset[str]
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    def added_to(self, attributes: Mapping[str, Attributes]) -> dict[str, Attributes]:
        """What is known of pictures otherwise goes before what their folder says."""
        all_of = dict(attributes)
        for name in {*self.weights, *self.held_out}:
            own = all_of.get(name, NO_ATTRIBUTES)
            weight = self.weights.get(name, 1.0) if own.weight == 1.0 else own.weight
            all_of[name] = own._replace(weight=weight, held_out=own.held_out or name in self.held_out)
        return all_of


NOTHING_READ = FolderReading({}, {}, frozenset(), (), ())


def read_folders(root_name: str, names: Sequence[str], as_what: FolderNames, trigger: str | None) -> FolderReading:
    """What the folders on the way to each picture say. root_name: of the folder that holds them all."""
    paths = {name: [root_name, *name.split("/")[:-1]] for name in names}
    held_out, split_notes = _held_out(paths)
    if as_what == "plain":
        return FolderReading({}, {}, held_out, tuple(split_notes), ())
    numbered = {folder for path in paths.values() for folder in path if _NUMBERED.fullmatch(folder)}
    names_only = _names_only(numbered, as_what)
    weights, captions, counts = dict[str, float](), dict[str, str](), Counter[str]()
    for name, path in paths.items():
        folder = next((f for f in reversed(path) if f in numbered and f not in names_only), None)
        if folder is not None:
            weights[name], captions[name] = _repeats(folder), _caption(folder, trigger)
            counts[folder] += 1
    notes = [*_repeat_notes(counts), *_name_notes(names_only, as_what), *split_notes]
    return FolderReading(weights, captions, held_out, tuple(notes), tuple(_regularisation(paths, weights)))


def _names_only(numbered: set[str], as_what: FolderNames) -> set[str]:
    """Folders whose number is part of a name: of years and cameras, with a leading zero, or counted through."""
    impossible = {f for f in numbered if not 0 < _repeats(f) <= LARGEST_WEIGHT}
    if as_what == "repeats":
        return impossible
    doubtful = {f for f in numbered if f[0] == "0" or _CAMERA.fullmatch(f)} | impossible
    rest = sorted(_repeats(f) for f in numbered - doubtful)
    counted = len(rest) > 1 and rest == list(range(1, len(rest) + 1))
    return numbered if counted else doubtful


def _repeats(folder: str) -> int:
    return int(folder.partition("_")[0][:12])


def _caption(folder: str, trigger: str | None) -> str:
    """`10_sks_mug` is `sks mug`, unless the trigger is written so."""
    said = folder.partition("_")[2]
    return " ".join((said if trigger and "_" in trigger and trigger in said else said.replace("_", " ")).split())


def _repeat_notes(counts: Mapping[str, int]) -> list[str]:
    if not counts:
        return []
    each = [f"{folder} (weight {_repeats(folder)}, pictures: {number})" for folder, number in counts.items()]
    return [
        "numbers in folder names are read as kohya's repeats, the weight of the pictures: "
        f"{_some(each)}; if they are mere names, set `folder_names` to plain"
    ]


def _name_notes(names_only: set[str], as_what: FolderNames) -> list[str]:
    if not names_only:
        return []
    if as_what == "repeats":
        return [
            f"{_some(sorted(names_only))}: the number is outside of the range of repeats, 1 to {LARGEST_WEIGHT:g}, and "
            "is read as part of the name"
        ]
    return [
        f"numbers in folder names are read as part of the name, not as kohya's repeats: {_some(sorted(names_only))}; "
        "if they are repeats, set `folder_names` to repeats"
    ]


def _held_out(paths: Mapping[str, Sequence[str]]) -> tuple[frozenset[str], list[str]]:
    """Pictures in a folder such as `validation`, and what is said of such folders."""
    folders = {part for path in paths.values() for part in path[1:]}
    trained = any(part.lower() in TRAIN_FOLDERS for part in folders)
    meant = {part for part in folders if part.lower() in HELD_OUT_FOLDERS or (trained and part.lower() in TEST_FOLDERS)}
    found = frozenset(name for name, path in paths.items() if meant.intersection(path[1:]))
    if len(found) == len(paths) > 0 or not found:
        alone = sorted(part for part in folders if part.lower() in HELD_OUT_FOLDERS | TEST_FOLDERS)
        why = "nothing else would be left to train on" if found else "there is no folder train beside it"
        return frozenset(), [f"pictures in {_some(alone)} are trained on: {why}"] if alone else []
    note = f"held out for validation, never trained on: {len(found)} of {len(paths)} pictures"
    return found, [f"{note}, those in {_some(sorted(meant))}; rename the folder to train on them"]


def _regularisation(paths: Mapping[str, Sequence[str]], weights: Mapping[str, float]) -> list[str]:
    """kohya's class images beside the subject, which would be trained on as if they showed it."""
    inside = {
        part: name
        for name in weights
        for part in paths[name][1:]
        if part.lower() in REGULARISATION and "/" in name.partition(f"{part}/")[2]
    }
    if not inside or all(any(part in inside for part in paths[name]) for name in weights):
        return []
    folder, example = next(iter(inside.items()))
    return [
        f"{folder} holds kohya's regularisation (class) images, such as {example}, which would be trained on as if "
        f"they showed the subject; move {folder} elsewhere, and set prior.path to it in the recipe"
    ]


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")
