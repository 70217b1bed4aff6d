"""Pictures that only accompany others: masks and control pictures, by the names that trainers and tools give them.

Masks: `NAME-masklabel` (OneTrainer), `NAME_mask` and `NAME-mask` (fal and many tools), `NAME.mask` beside `NAME.src`
(cloneofsimo/lora, Replicate), the same name in a folder `masks` or `FOLDER_mask` (kohya's conditioning_data_dir, the
mask_path of ai-toolkit and diffusion-pipe, SimpleTuner's conditioning data). Control pictures: `NAME-condlabel`
(OneTrainer), `NAME-depth` (StableTuner), the same name in a folder `control`, `conditioning` and so on (ai-toolkit,
musubi-tuner with `NAME_0`, diffusers, SimpleTuner).
"""

import posixpath
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from finetune.data.folder import Rejected
from finetune.data.masks import is_grey
from finetune.data.text.caption_files import FoundCaptions
from finetune.data.text.captions import CaptionNote

Companion = Literal["mask", "control"]
ENDINGS: dict[str, Companion] = {
    "-masklabel": "mask", "_masklabel": "mask", "-mask": "mask", "_mask": "mask", ".mask": "mask",
    "-condlabel": "control", "_condlabel": "control", "-control": "control", "_control": "control",
    "-conditioning": "control", "_conditioning": "control", "-depth": "control", "_depth": "control",
}  # fmt: skip
"""of a file's stem, in any case; none ends with another"""
SURE = ("-masklabel", "_masklabel", "-condlabel", "_condlabel")
"""endings that no subject's picture has"""
FOLDER_WORDS: dict[str, Companion] = {
    "mask": "mask", "masks": "mask", "masklabel": "mask", "masklabels": "mask",
    "control": "control", "controls": "control", "conditioning": "control", "cond": "control",
    "condlabel": "control", "condlabels": "control",
}  # fmt: skip
"""words of a folder's name, as in `masks`, `mug_mask` or `conditioning_images`"""
SOURCE_ENDING = ".src"
_LAST_WORD = re.compile(rf"[-_.](?:{'|'.join(FOLDER_WORDS)})$", re.IGNORECASE)
_NUMBERED = re.compile(r"_\d{1,4}$")


class Companions(NamedTuple):
    """What accompanies the pictures of a folder."""

    masks: dict[str, str]
    """picture -> its mask"""
    rejected: list[Rejected]
    """Control pictures, and masks without a picture."""
    problems: list[str]
    notes: list[CaptionNote]

    @property
    def files(self) -> set[str]:
        """Those that are no subjects."""
        return {*self.masks.values(), *(one.file for one in self.rejected)}

    @property
    def mask_files(self) -> int:
        return len(set(self.masks.values()) - {one.file for one in self.rejected})

    def of(self, used: Collection[str]) -> "Companions":
        """Those of these pictures; the masks of the others are rejected with them."""
        kept = {picture: mask for picture, mask in self.masks.items() if picture in used}
        with_one = {*kept.values(), *(one.file for one in self.rejected)}
        lost = {mask: picture for picture, mask in self.masks.items() if mask not in with_one}
        alone = [
            Rejected(mask, "mask without picture", f"its picture {picture} is rejected")
            for mask, picture in lost.items()
        ]
        return Companions(kept, [*self.rejected, *alone], self.problems, self.notes)


class _Claim(NamedTuple):
    part: Companion
    sure: bool
    owners: list[str]


def companions_in(root: Path, names: Sequence[str], captions: FoundCaptions, prepared: bool) -> Companions:
    """What accompanies the pictures among these files. In a prepared dataset each picture is in the table."""
    named = {picture: a.mask for picture, a in captions.attributes.items() if a.mask}
    listed = captions.texts.keys() if prepared else ()
    found = find_companions(names, named, captions.texts, listed, lambda name: is_grey(root / name))
    captioned = [mask for mask in dict.fromkeys(found.masks.values()) if captions.texts.get(mask)]
    return found._replace(notes=[CaptionNote(mask, "is a mask: its caption is not used") for mask in captioned])


def find_companions(
    names: Sequence[str], named: Mapping[str, str], captioned: Collection[str], listed: Collection[str],
    is_grey: Callable[[str], bool],
) -> Companions:  # fmt: skip
    """named: picture -> mask, where a table says so. captioned: pictures that have a caption of their own. listed:
    files that are pictures, whatever they are called. is_grey: whether a file may be a mask."""
    found = Companions({}, [], [], [])
    _take_named(names, named, listed, found)
    taken, claims = set(found.masks.values()), dict[str, _Claim]()
    some = [name for name in names if name not in taken and name not in listed and _may_be(name)]
    if some:
        index = _Index(names, {*taken, *some})
        claims = {name: claim for name in some if (claim := index.claim(name))}
    for name, claim in claims.items():
        if not claim.owners:
            _leave_alone(name, claim, captioned, is_grey, found)
        elif claim.part == "control":
            detail = f"it belongs to {claim.owners[0]}, and no supported base uses control pictures; move it elsewhere"
            found.rejected.append(Rejected(name, "control picture", detail))
        else:
            _give(name, claim.owners, found)
    return found


def _take_named(names: Sequence[str], named: Mapping[str, str], listed: Collection[str], found: Companions) -> None:
    if not named:
        return
    known = {_composed(name): name for name in names}
    for picture, written in named.items():
        mask = known.get(_composed(written))
        if mask is None:
            found.problems.append(
                f"the mask {written} of {picture} does not exist; correct mask_file_name, or leave it empty"
            )
        elif mask == picture or mask in listed:
            found.problems.append(f"{mask} is listed as a picture and as the mask of {picture}; remove one of the two")
        else:
            found.masks[picture] = mask


def _leave_alone(
    name: str, claim: _Claim, captioned: Collection[str], is_grey: Callable[[str], bool], found: Companions
) -> None:
    """Of a name that only looks like a companion's: a picture in colour, or with a caption, is a subject."""
    if not claim.sure and (claim.part == "control" or name in captioned or not is_grey(name)):
        return
    if claim.part == "control":
        detail = "there is no picture that it belongs to; rename it if it is a picture to train on"
        found.rejected.append(Rejected(name, "control picture", detail))
    else:
        detail = "there is no picture that it is the mask of; rename it if it is a picture to train on"
        found.rejected.append(Rejected(name, "mask without picture", detail))


def _give(name: str, owners: Sequence[str], found: Companions) -> None:
    if len({posixpath.splitext(owner)[0] for owner in owners}) > 1:
        found.problems.append(
            f"{name} may be the mask of {owners[0]} or of {owners[1]}; say which in a column mask_file_name"
        )
        found.masks.setdefault(owners[0], name)
        return
    for owner in owners:
        if (other := found.masks.setdefault(owner, name)) != name:
            found.problems.append(f"two masks for {owner}: {other} and {name}; keep one")
            found.rejected.append(Rejected(name, "mask without picture", f"{owner} has the mask {other} already"))
            return


class _Index:
    """Pictures that may be accompanied, by folder and stem."""

    def __init__(self, names: Sequence[str], companions: Collection[str]) -> None:
        self._by_stem: dict[str, list[str]] = {}
        self._folders: dict[str, dict[str, None]] = {}
        for name in names:
            if name not in companions:
                self._by_stem.setdefault(posixpath.splitext(name)[0], []).append(name)
        for folder in sorted({posixpath.dirname(name) for name in names}):
            while folder:
                parent = posixpath.dirname(folder)
                self._folders.setdefault(parent, {})[folder] = None
                folder = parent

    def claim(self, name: str) -> _Claim | None:
        stem = posixpath.splitext(name)[0]
        if ending := _ending(stem):
            bare = stem[: -len(ending)]
            owners = self._of([bare], [bare + SOURCE_ENDING])
            if owners or ending in SURE:
                return _Claim(ENDINGS[ending], ending in SURE, owners)
        inside = _folder_of(posixpath.dirname(name))
        if inside is None:
            return _Claim(ENDINGS[ending], False, []) if ending else None
        folder, part = inside
        owners = self._of(*self._beside(folder, stem[len(folder) + 1 :], part))
        return _Claim(part, False, owners)

    def _beside(self, folder: str, stem: str, part: Companion) -> Iterator[list[str]]:
        """The stems of pictures that a file in this folder may accompany, the likeliest first."""
        parent, own = posixpath.dirname(folder), posixpath.basename(folder)
        stems = [stem]
        if (ending := _ending(stem)) and ENDINGS[ending] == part:
            stems.append(stem[: -len(ending)])
        if part == "control":
            stems.append(_NUMBERED.sub("", stem))
        bare = _LAST_WORD.sub("", own)
        siblings = [s for s in self._folders.get(parent, ()) if s != folder and _part_of(posixpath.basename(s)) is None]
        same = [s for s in siblings if posixpath.basename(s) == bare]
        for places in (same, [parent], siblings):
            yield [posixpath.join(place, one) for place in places for one in stems]

    def _of(self, *levels: Sequence[str]) -> list[str]:
        """The pictures of the first of these lists of stems that has some."""
        for stems in levels:
            if owners := [name for stem in dict.fromkeys(stems) for name in self._by_stem.get(stem, ())]:
                return owners
        return []


def _may_be(name: str) -> bool:
    return bool(_ending(posixpath.splitext(name)[0])) or _folder_of(posixpath.dirname(name)) is not None


def _ending(stem: str) -> str:
    low = stem.lower()
    return next((ending for ending in ENDINGS if low.endswith(ending) and len(low) > len(ending)), "")


@cache
def _folder_of(folder: str) -> tuple[str, Companion] | None:
    """The outermost folder on this path whose pictures accompany others."""
    parts = folder.split("/") if folder else []
    for depth, part in enumerate(parts, 1):
        if kind := _part_of(part):
            return "/".join(parts[:depth]), kind
    return None


def _part_of(folder: str) -> Companion | None:
    words = re.split(r"[-_.]", folder.lower())
    return next((FOLDER_WORDS[word] for word in (words[-1], words[0]) if word in FOLDER_WORDS), None)


def _composed(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)
