"""Bytes that any file may have: none that belong there, or those of a sound file with something wrong in them."""

import json
import struct
from collections.abc import Callable
from typing import Any

import tomlkit
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from tomlkit.exceptions import TOMLKitError

NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**31, 2**63, 10**30, 0.5, -1e308, float("nan"), float("inf"), "", "x", "0", "a" * 3000,
    "\ud800", "\x1b[31m", "\x00", "../../../etc/passwd", "\u202e", "{", [], [[]], ["x"], [None], [0, -1], {}, {"x": 1},
    {"": {}}, {"value": "x"}, {"a": {"b": {"c": [1]}}},
)  # fmt: skip
"""values that belong nowhere"""
DEEP = 20_000
TOKENS = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x1b]0;x\x07", b"NaN", b"null", b"9" * 5000, b'"', b"\\",
    b"{", b"}", b"[", b"]", b"\n", b"\r", b",", b"=", b"#", b"[" * DEEP, b'{"a":' * DEEP, b"\xff" * 8, b"\x00" * 64,
    b"\\ud800", b"1e999", b"-", b"../", b"{{" * 200, b"|" * 50,
)  # fmt: skip
"""bytes that mean something to some reader"""
Edit = Callable[[bytes], bytes]


def any_bytes(sound: bytes) -> SearchStrategy[bytes]:
    """Raw bytes, or the sound file after one to four edits; of JSON, TOML and safetensors also in their structure."""
    edits = st.lists(raw_edits(), min_size=1, max_size=4)
    edited = edits.map(lambda some: applied(sound, some))
    return st.one_of(st.binary(max_size=200), edited, *structured(sound), *structured(sound))


def applied(content: bytes, edits: list[Edit]) -> bytes:
    for edit in edits:
        content = edit(content)
    return content


@st.composite
def raw_edits(draw: st.DrawFn) -> Edit:
    """A bit turned, a cut, bytes put in or put in the place of others, a piece repeated."""
    at, length = draw(st.floats(0, 1)), draw(st.integers(0, 40))
    kind = draw(st.sampled_from(("bit", "cut", "insert", "replace", "repeat")))
    put = draw(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=12)))
    bit = draw(st.integers(0, 7))

    def edit(content: bytes) -> bytes:
        n = int(at * len(content))
        if kind == "bit" and n < len(content):
            return content[:n] + bytes([content[n] ^ (1 << bit)]) + content[n + 1 :]
        if kind == "cut":
            return content[:n]
        if kind == "repeat":
            return content[:n] + content[n : n + length] * 3 + content[n + length :]
        return content[:n] + put + content[n + (length if kind == "replace" else 0) :]

    return edit


def structured(sound: bytes) -> list[SearchStrategy[bytes]]:
    """Of a format that is known: its values replaced, removed and renamed."""
    if len(sound) > 8 and (length := struct.unpack("<Q", sound[:8])[0]) < len(sound) - 8:
        head, payload = json.loads(sound[8 : 8 + length]), sound[8 + length :]
        return [values(head).map(lambda new: packed(json.dumps(new).encode(), payload))]
    try:
        text = sound.decode()
    except UnicodeDecodeError:
        return []
    try:
        return [values([json.loads(line) for line in text.splitlines()]).map(as_lines), *tables(text)]
    except ValueError:
        return tables(text)


def tables(text: str) -> list[SearchStrategy[bytes]]:
    """Of one JSON value over many lines, or of TOML."""
    try:
        return [values(json.loads(text)).map(lambda new: json.dumps(new).encode())]
    except ValueError:
        pass
    try:
        table = tomlkit.parse(text).unwrap()
    except TOMLKitError:
        return []
    return [values(table).map(as_toml)]


def packed(head: bytes, payload: bytes) -> bytes:
    return struct.pack("<Q", len(head)) + head + payload


def as_lines(rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in (rows if isinstance(rows, list) else [rows]))


def as_toml(table: Any) -> bytes:
    """What TOML cannot say is left as JSON, which is no TOML."""
    try:
        return tomlkit.dumps(table).encode()
    except (TypeError, ValueError, AttributeError, TOMLKitError, UnicodeError):
        return json.dumps(table).encode()


@st.composite
def values(draw: st.DrawFn, sound: Any) -> Any:
    """The value with one to three of its parts, at any depth, replaced, removed, renamed or doubled."""
    for _ in range(draw(st.integers(1, 3))):
        sound = changed(draw, sound)
    return sound


def changed(draw: st.DrawFn, value: Any) -> Any:
    inside = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    if not inside or draw(st.integers(0, 7)) == 0:
        return draw(st.sampled_from(NASTY))
    key, inner = draw(st.sampled_from(inside))
    how = draw(st.sampled_from(("deeper", "deeper", "deeper", "gone", "renamed")))
    rest = {k: v for k, v in inside if how == "deeper" or k != key}
    if how == "deeper":
        rest[key] = changed(draw, inner)
    elif how == "renamed":
        rest[draw(st.sampled_from(("", "x", "../x", "\x1b[1m", "a" * 300, "\ud800")))] = inner
    return rest if isinstance(value, dict) else list(rest.values())
