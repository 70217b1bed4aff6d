"""Texts from outside as a screen may show them: captions, names and metadata carry nothing that a terminal obeys."""

import re

CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # escape codes begin with one of these; line feeds and tabs stay
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # turn the direction of what follows
    "\u2028\u2029\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"  # break lines, hide text, or are no characters
)
_CODES = re.compile(r"\x1b(?!\[[0-9;]*[mAGJK]|\[\?25[lh])|[\x00-\x07\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
"""what no progress bar and no colour needs: titles, clipboard writes, other screens"""


def harmless(text: str) -> str:
    """The same text with each such character written out, as `\\x1b` or `\\u202e`."""
    return text if text.isascii() and text.isprintable() else CONTROLS.sub(_written_out, text)


def only_colours(text: str) -> str:
    """Of what is about to be written to a terminal: no codes but those of colours and progress bars."""
    return text if text.isprintable() else _CODES.sub(_written_out, text)


def harmless_json(text: str) -> str:
    """JSON whose strings mean the same, with such characters as \\u escapes."""
    return CONTROLS.sub(lambda found: found[0] if found[0] in "\r\n\t" else _escaped(found[0]), text)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _escaped(character: str) -> str:
    pairs = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{pairs[i]:02x}{pairs[i + 1]:02x}" for i in range(0, len(pairs), 2))
