"""Texts from outside as rich may print them."""

from rich import markup

from finetune.reporting.shown import harmless


def escape(text: str) -> str:
    """Harmless, and no markup of rich."""
    return markup.escape(harmless(text))
