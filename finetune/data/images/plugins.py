"""Formats that Pillow reads with another library, which is only asked for when a file needs it.

HEIC: pillow-heif, the extra `heic`. JPEG XL: pillow-jxl-plugin, where it is installed.
"""

import importlib
import importlib.util
from functools import cache
from importlib import metadata
from typing import NamedTuple

from finetune.data.images.signatures import HEIF_BRANDS, JPEG_XL_MAGIC


class Plugin(NamedTuple):
    format: str
    """Pillow's name for it"""
    module: str
    package: str
    opener: str
    """the function of the module that registers it; empty: importing does"""


HEIF = Plugin("HEIF", "pillow_heif", "pillow-heif", "register_heif_opener")
JPEG_XL = Plugin("JXL", "pillow_jxl", "pillow-jxl-plugin", "")


def needed_plugin(data: bytes) -> Plugin | None:
    """By how a file begins."""
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:
        return HEIF
    return JPEG_XL if data.startswith(JPEG_XL_MAGIC) else None


def formats_for(data: bytes) -> tuple[str, ...]:
    """Formats that Pillow can read such a file as, beside its own."""
    plugin = needed_plugin(data)
    return (plugin.format,) if plugin and _register(plugin) else ()


@cache
def _register(plugin: Plugin) -> bool:
    """False: it is not installed."""
    if importlib.util.find_spec(plugin.module) is None:
        return False
    try:
        module = importlib.import_module(plugin.module)
    except ImportError:  # made for another Pillow, or lacks a library of the system
        return False
    if plugin.opener:
        getattr(module, plugin.opener)()
    return True


def plugin_versions() -> str:
    """Of what is installed: another version may decode a file otherwise."""
    found = []
    for plugin in (HEIF, JPEG_XL):
        try:
            found.append(f", {plugin.package} {metadata.version(plugin.package)}")
        except metadata.PackageNotFoundError:
            continue
    return "".join(found)
