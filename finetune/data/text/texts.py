"""Text files of a dataset as they are found: UTF-8, or UTF-16 as Windows writes it, bounded and without marks."""

import codecs
from pathlib import Path

from finetune import reading
from finetune.errors import DataError, InputError

CAPTION_BYTES = 1 << 20
"""the most that a picture's own caption file may have; a text encoder reads some hundred words"""
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def text_in(file: Path, kind: type[InputError] = DataError, most: int = reading.TEXT_BYTES) -> str:
    """The text without a byte-order mark, lines ending in a line feed.

    Raises:
        kind: it cannot be read, is too large, or is no text.
    """
    content = reading.read_bytes(file, kind, limit=most)
    if content.startswith(_MARKS):
        try:
            text = content.decode("utf-16")
        except UnicodeDecodeError as e:
            raise kind(
                f"{file} is not UTF-16 text (byte {e.start}), though it begins as one", "save it as UTF-8"
            ) from e
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as e:
            raise kind(f"{file} is not UTF-8 text (byte {e.start})", "save it as UTF-8") from e
    if "\0" in text:
        raise kind(f"{file} holds zero bytes, as UTF-16 without its mark does", "save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_or_say(root: Path, name: str, problems: list[str], most: int = reading.TEXT_BYTES) -> str:
    """`text_in` of a file of the dataset; what is wrong with it is added to the problems."""
    try:
        return text_in(root / name, most=most)
    except DataError as e:
        problems.append("; ".join(filter(None, (e.problem.replace(str(root / name), name), e.hint))))
    return ""


def prose(file: Path) -> str:
    """A small file that is text and no mark-up; empty: it is something else, or cannot be read."""
    try:
        text = text_in(file, most=CAPTION_BYTES).strip()
    except DataError:
        return ""
    return "" if text.startswith(("<", "%", "bplist")) or not any(c.isalpha() for c in text) else text
