"""Caption files that lie beside their pictures: IMG_0.txt, IMG_0.caption, IMG_0.json, IMG_0.jpg.txt."""

import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune import reading
from finetune.data.images.signatures import IMAGE_SUFFIXES
from finetune.data.text.columns import EVERY_CAPTION_COLUMN, best_captions
from finetune.data.text.texts import CAPTION_BYTES, prose, read_or_say, text_in
from finetune.errors import DataError

SIDECARS = (".txt", ".caption")
JSON = ".json"
JSON_BYTES = 16 << 20
_WANTED = ", ".join(EVERY_CAPTION_COLUMN[:4])
_SHORT = "caption_short"
"""ai-toolkit's second, shorter caption"""


class Sidecars(NamedTuple):
    """What lies beside pictures."""

    texts: dict[str, str]
    further: dict[str, tuple[str, ...]]
    """Picture -> other captions in the same file"""
    files: set[str]
    """Those that belong to a picture."""
    orphans: list[str]
    problems: list[str]
    unclear: dict[str, str]
    """JSON beside a picture that may be its caption -> why it was not read"""


class Owners:
    """The pictures by what a sidecar of theirs is called without its suffix."""

    def __init__(self, pictures: Iterable[str]) -> None:
        self._by_stem: dict[str, list[str]] = {}
        for picture in pictures:
            self._by_stem.setdefault(posixpath.splitext(picture)[0], []).append(picture)
            self._by_stem.setdefault(picture, []).append(picture)

    def of(self, sidecar: str) -> list[str]:
        """Of IMG_0.txt IMG_0.jpg, and IMG_0.png as well; of IMG_0.jpg.txt the one."""
        return self._by_stem.get(posixpath.splitext(sidecar)[0], [])


def read_sidecars(root: Path, names: Sequence[str], owners: Owners) -> Sidecars:
    found = Sidecars({}, {}, set(), [], [], {})
    said_by: dict[str, str] = {}
    for sidecar in names:
        pictures = owners.of(sidecar)
        if not pictures:
            found.orphans.append(sidecar)
            continue
        read = _captions(root, sidecar, found)
        if read is None:
            continue
        found.files.add(sidecar)
        text, further = read
        for picture in pictures:
            earlier = said_by.setdefault(picture, sidecar)
            if earlier == sidecar:
                found.texts[picture] = text
                if further:
                    found.further[picture] = further
            elif found.texts[picture].split() != text.split():
                problem = f"two captions for {picture}: {earlier} and {sidecar}; keep one"
                found.problems.append(problem)
                break
    return found


def unknown_sidecars(root: Path, names: Iterable[str], owners: Owners, lacking: set[str]) -> list[str]:
    """Files of text beside pictures that have no caption, under other suffixes than those that are read."""
    return [
        name for name in names
        if name not in lacking and not lacking.isdisjoint(owners.of(name)) and prose(root / name)
    ]  # fmt: skip


def _captions(root: Path, sidecar: str, found: Sidecars) -> tuple[str, tuple[str, ...]] | None:
    """(the caption, further ones); None: a JSON file that is about something else, or unclear."""
    if not sidecar.lower().endswith(JSON):
        return read_or_say(root, sidecar, found.problems, CAPTION_BYTES), ()
    try:
        return _of_json(reading.json_value(text_in(root / sidecar, most=JSON_BYTES), sidecar, DataError, "", False))
    except DataError as e:
        found.unclear[sidecar] = e.problem.replace(str(root / sidecar), sidecar)
    except _UnclearError as e:
        found.unclear[sidecar] = f"{sidecar}: {e}"
    return None


def _of_json(found: Any) -> tuple[str, tuple[str, ...]] | None:
    """Raises _UnclearError: some of it may be a caption."""
    if isinstance(found, str):
        return found, ()
    if not isinstance(found, dict):
        return None
    said = {key: value for key, value in found.items() if isinstance(value, str) and value.strip()}
    exact = best_captions(key for key, value in said.items() if not _names_a_picture(value))
    if len({said[key] for key in exact}) > 1:
        raise _UnclearError(
            f"several keys may be the caption: {', '.join(exact)}; name the right one `caption`, or leave others out"
        )
    if not exact:
        if any(" " in value.strip() and not _names_a_picture(value) for value in said.values()):
            keys = ", ".join(map(str, found))[:200]
            raise _UnclearError(f"no key is known to hold a caption: {keys}; name it one of {_WANTED}")
        return None
    short = found.get(_SHORT)
    return said[exact[0]], (short,) if isinstance(short, str) and short.strip() else ()


def _names_a_picture(text: str) -> bool:
    """As the `title` in the files of Google Takeout does."""
    return text.strip().lower().endswith(IMAGE_SUFFIXES)


class _UnclearError(Exception):
    """JSON that may hold a caption."""
