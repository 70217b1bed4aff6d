"""What comes from outside is read here: bounded, as strict UTF-8, and every fault is an error that names the place.

A downloaded file may hold anything. Whatever it is, these readers give a value or raise the error class that they were
called with: never another exception, and never more memory than a few times `limit`.
"""

import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.errors import InputError

TEXT_BYTES = 64 << 20
"""the most that a text file may have: tables of captions are the largest"""
CONFIG_BYTES = 8 << 20
"""the most of a recipe, a card or a configuration"""
DEPTH = 40
"""the most levels of tables and lists within each other"""
ErrorClass = type[InputError]


# -- files ------------------------------------------------------------------------------------------------------------


def read_text(path: Path, kind: ErrorClass, hint: str = "check the path", limit: int = TEXT_BYTES) -> str:
    """A file's text without a byte-order mark, lines as they are.

    Raises:
        kind: it cannot be read, has more than `limit` bytes, or is no UTF-8.
    """
    content = read_bytes(path, kind, hint, limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise kind(f"{path} is not UTF-8 text (byte {e.start})", "save it as UTF-8") from e


def read_bytes(path: Path, kind: ErrorClass, hint: str = "check the path", limit: int = TEXT_BYTES) -> bytes:
    """Raises kind: it cannot be read, or has more than `limit` bytes."""
    try:
        with open(path, "rb", opener=_opened) as file:
            expected = min(limit, os.fstat(file.fileno()).st_size)  # room is made for all that is asked for
            content = file.read(expected + 1)
            if len(content) > expected:
                content += file.read(limit + 1 - len(content))
    except OSError as e:
        raise kind(f"cannot read {path}: {e.strerror}", hint) from e
    except ValueError as e:  # a name with a NUL
        raise kind(f"cannot read {str(path)!r}: {e}", hint) from e
    if len(content) > limit:
        raise kind(f"{path} has more than {_size(limit)}", "is it the right file?")
    return content


def byte_lines(path: Path, limit: int) -> Iterator[bytes]:
    """Line by line; nothing of a file of more than `limit` bytes. Raises OSError: it cannot be read."""
    with open(path, "rb", opener=_opened) as file:
        if os.fstat(file.fileno()).st_size <= limit:
            yield from file


def read_part(path: Path, start: int = 0, length: int = -1) -> bytes:
    """So many bytes of a file from a place on, -1: all; fewer where it ends. Raises OSError: it cannot be read."""
    with open(path, "rb", buffering=0, opener=_opened) as file:
        file.seek(start)
        return file.read(length) or b""


def _opened(path: str, flags: int) -> int:
    """A pipe that nobody writes into is empty, and is not waited for."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    os.set_blocking(descriptor, True)
    return descriptor


def real_path(path: Path) -> Path:
    """As Path.resolve; a link to itself stays as it is."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        return path


def home() -> Path | None:
    """The user's folder; None: there is none, as in a container whose user has no name."""
    try:
        return Path.home()
    except (RuntimeError, KeyError):
        return None


def is_file(path: Path) -> bool:
    """As Path.is_file; False too where the name is impossible, or a folder on the way may not be entered."""
    return (mode := _mode(path)) is not None and stat.S_ISREG(mode)


def is_dir(path: Path) -> bool:
    """As Path.is_dir; False as `is_file` is."""
    return (mode := _mode(path)) is not None and stat.S_ISDIR(mode)


def exists(path: Path) -> bool:
    """As Path.exists; False as `is_file` is."""
    return _mode(path) is not None


def absent(path: Path, what: str = "file") -> str:
    """Why a path that was looked for is not there: the problem of an error."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return f"no {what} {path}"
    except OSError as e:
        return f"no {what} {path}: {e.strerror}"
    except ValueError as e:
        return f"no {what} {str(path)!r}: {e}"
    return f"{path} is no {what}"


def _mode(path: Path) -> int | None:
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return None


# -- formats ----------------------------------------------------------------------------------------------------------


def read_json(
    path: Path, kind: ErrorClass, hint: str, finite: bool = True, limit: int = CONFIG_BYTES
) -> dict[str, Any]:
    """The table of a JSON file. Raises kind as `read_text` and `json_table`."""
    return json_table(read_text(path, kind, hint, limit), str(path), kind, hint, finite)


def read_toml(path: Path, kind: ErrorClass, hint: str, limit: int = CONFIG_BYTES) -> dict[str, Any]:
    """The tables of a TOML file. Raises kind as `read_text` and `toml_table`."""
    return toml_table(read_text(path, kind, hint, limit), str(path), kind, hint)


def json_table(text: str, where: str, kind: ErrorClass, hint: str, finite: bool = True) -> dict[str, Any]:
    """A JSON object.

    Raises:
        kind: it is another value, or as `json_value`.
    """
    found = json_value(text, where, kind, hint, finite)
    if not isinstance(found, dict):
        raise kind(f"{where} is {_called(found)}, not a JSON object", hint)
    return found


def json_value(text: str, where: str, kind: ErrorClass, hint: str, finite: bool = True) -> Any:
    """finite: NaN and infinity, which are no JSON, are refused; some schedulers' files have them.

    Raises:
        kind: no JSON; too deep; a number that is none, or has thousands of digits; half a character.
    """
    try:
        found = json.loads(text, parse_constant=_refused if finite else None, parse_float=_finite if finite else None)
        if not _is_plain(text):
            check_value(found)
    except (ValueError, RecursionError) as e:
        raise kind(f"{where} is not JSON: {_said(e)}", hint) from e
    return found


def toml_table(text: str, where: str, kind: ErrorClass, hint: str | Callable[[str], str]) -> dict[str, Any]:
    """hint: may be made of the fault.

    Raises:
        kind: no TOML; too deep; a number of thousands of digits.
    """
    try:
        found = tomllib.loads(text)
        check_value(found)
    except (ValueError, RecursionError) as e:
        next_step = hint if isinstance(hint, str) else hint(str(e))
        raise kind(f"{where} is not TOML: {_said(e)}{_line(text, str(e))}", next_step) from e
    return found


def check_value(value: object) -> None:
    """Raises ValueError where a value lies deeper than DEPTH, or where a text cannot be written as UTF-8."""
    level: list[object] = [value]
    for _ in range(DEPTH):
        for one in level:
            if isinstance(one, str) and not one.isascii() and _SURROGATE.search(one):
                raise ValueError(f"half a character in {one[:40]!r}")
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return
    raise ValueError(f"it is more than {DEPTH} levels deep")


def finite_number(found: object, where: str, kind: ErrorClass, hint: str) -> float:
    """Raises kind: it is no number, or not a finite one in float32, which it will be multiplied with."""
    if isinstance(found, bool) or not isinstance(found, int | float) or abs(found) > 3e38 or not math.isfinite(found):
        raise kind(f"{where}: {_shown(found)} where a number belongs", hint)
    return float(found)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _is_plain(text: str) -> bool:
    """Whether no value of that JSON can lie too deep, or hold half a character, as of most lines of a table."""
    return "\\u" not in text and text.count("{") + text.count("[") < DEPTH and text.isascii()


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list | tuple) else ()


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _finite(digits: str) -> float:
    found = float(digits)
    if not math.isfinite(found):
        raise ValueError(f"{digits[:20]} is too large a number")
    return found


def _said(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"it is more than {DEPTH} levels deep"
    return str(error).replace("; use sys.set_int_max_str_digits() to increase the limit", "")


def _line(text: str, fault: str) -> str:
    """The line that a fault of TOML names."""
    named = re.search(r"line (\d+)", fault)
    lines = text.splitlines()
    return f"\n  {lines[int(named[1]) - 1].strip()[:200]}" if named and int(named[1]) <= len(lines) else ""


def _called(value: object) -> str:
    return {list: "a list", str: "a text", type(None): "nothing", bool: "true or false"}.get(type(value), "a number")


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of very many digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count} bytes"
