"""What a picture's own file says that it shows: EXIF, IPTC, XMP, PNG text, or the prompt it was generated from."""

import html
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile, IptcImagePlugin, PngImagePlugin

from finetune.data.images import costs
from finetune.data.images.decode import DECODER_ERRORS, IMAGE_FORMATS, SILENCE, contents
from finetune.data.images.diagnose import Unusable
from finetune.data.text.caption_files import FoundCaptions

DESCRIPTIONS = "descriptions"
"""The source of captions that pictures bring with them"""
_IMAGE_DESCRIPTION, _XP_TITLE, _XP_COMMENT, _XP_SUBJECT = 0x010E, 0x9C9B, 0x9C9C, 0x9C9F
_EXIF, _USER_COMMENT, _XMP_TAG = 0x8769, 0x9286, 700
_IPTC_CAPTION = (2, 120)
_PNG_KEYS = ("Description", "description", "ImageDescription", "Caption", "caption", "Comment", "comment", "Title")
_BY_CAMERAS = re.compile(
    r"\s*(olympus digital camera|minolta digital camera|konica minolta.*|sony dsc|kodak digital.*|digital camera|"
    r"samsung camera.*|dcim.*|default|untitled|created with.*|screenshot|exif_jpeg.*|jpeg|charset=.*|\W*|\d+)\s*",
    re.IGNORECASE | re.DOTALL,
)
_LONGEST = 20_000
"""characters of a description, which people keep to some hundred"""
_GENERATED = re.compile(r"\n(?:Negative prompt:|Steps: \d+)")


def with_descriptions(root: Path, names: Sequence[str], found: FoundCaptions) -> FoundCaptions:
    """The captions with those that pictures without one bring with them, in place of what folders and files say."""
    told = {
        name: text for name in names if not found.texts.get(name, "").split() and (text := description(root / name))
    }
    source = " and ".join(filter(None, ("" if found.source == "none" else found.source, DESCRIPTIONS if told else "")))
    return found._replace(source=source or "none", texts={**found.texts, **told})


def description(path: Path) -> str:
    """What the file of a picture says of it; empty: nothing, or nothing but what a camera writes into all."""
    try:
        with SILENCE:
            data = costs.without_long_texts(path, contents(path))
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
            return next((text for said in _said(image) if (text := _tidy(said))), "")
    except (Unusable, Image.DecompressionBombError, *DECODER_ERRORS):
        return ""


def _said(image: ImageFile.ImageFile) -> Iterator[Any]:
    """From the most deliberate to the least."""
    exif = image.getexif()
    yield _xmp(image, exif, "dc:description")
    yield _iptc(image)
    yield exif.get(_IMAGE_DESCRIPTION)
    texts = {key: str(value) for key, value in image.info.items() if isinstance(key, str) and isinstance(value, str)}
    if isinstance(image, PngImagePlugin.PngImageFile):
        texts |= {key: str(value) for key, value in image.text.items()}
    yield from (texts.get(key) for key in _PNG_KEYS[:5])
    yield _prompt(texts.get("parameters", ""))
    yield _utf16(exif.get(_XP_COMMENT))
    comment = _user_comment(exif.get_ifd(_EXIF).get(_USER_COMMENT))
    yield _prompt(comment) or comment
    yield from (texts.get(key) for key in _PNG_KEYS[5:])
    yield from (_utf16(exif.get(tag)) for tag in (_XP_SUBJECT, _XP_TITLE))
    yield from (_xmp(image, exif, tag) for tag in ("photoshop:Headline", "dc:title"))


def _tidy(said: Any) -> str:
    """One line of text; empty where a camera or a program wrote it, not a person."""
    if isinstance(said, bytes):
        said = said.decode("utf-8", "replace")
    if not isinstance(said, str):
        return ""
    try:
        said = said.encode("latin-1").decode("utf-8")  # EXIF is ASCII by its standard, and UTF-8 in practice
    except UnicodeError:
        pass
    text = " ".join(re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", " ", said[:_LONGEST]).split())
    if "\ufffd" in text or text.startswith(("{", "<")) or _BY_CAMERAS.fullmatch(text):
        return ""
    return text


def _xmp(image: Image.Image, exif: Image.Exif, tag: str) -> str:
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or exif.get(_XMP_TAG) or ""
    text = packet.decode("utf-8", "replace") if isinstance(packet, bytes) else str(packet)
    inside = _between(text, tag)
    return html.unescape(re.sub(r"<[^<>]*>", " ", _between(inside, "rdf:li") or inside))


def _between(text: str, tag: str) -> str:
    """What the first element of that name holds; empty: there is none."""
    start = text.find(f"<{tag}")
    opened = text.find(">", start)
    end = text.find(f"</{tag}>", opened)
    return text[opened + 1 : min(end, opened + 1 + _LONGEST)] if 0 <= start < opened < end else ""


def _iptc(image: ImageFile.ImageFile) -> Any:
    found = IptcImagePlugin.getiptcinfo(image) or {}
    said = found.get(_IPTC_CAPTION)
    return said[0] if isinstance(said, list) and said else said


def _prompt(parameters: str) -> str:
    """The prompt of a picture that a web UI generated; empty where the text is something else."""
    found = _GENERATED.search(parameters)
    return parameters[: found.start()] if found else ""


def _utf16(value: Any) -> str:
    """The fields of Windows."""
    return value.decode("utf-16-le", "ignore").rstrip("\0") if isinstance(value, bytes) else ""


def _user_comment(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        return ""
    code, text = value[:8], value[8:]
    if code.startswith(b"UNICODE"):
        little = text[1:2] == b"\0"
        return text.decode("utf-16-le" if little else "utf-16-be", "ignore")
    return text.decode("utf-8", "ignore") if code.startswith((b"ASCII", b"\0\0\0\0")) else ""
