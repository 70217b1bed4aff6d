"""A run as TensorBoard's curves, pictures and texts."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.events import Event, Finished, Resumed
from finetune.reporting.readings import Reading, Readings


class TensorBoard:
    """Losses, learning rates, scores, speed, memory and sheets, beside the run. Opened at the first of them."""

    def __init__(self, folder: Path, readings: Readings | None = None, texts: Mapping[str, str] | None = None) -> None:
        self.folder, self.readings = folder, readings or Readings()
        self.texts = texts or {}
        """what is known of the run before its first step"""
        self.writer: Any = None
        self.purge: int | None = None

    def __call__(self, event: Event) -> None:
        """Raises OSError: the disk is full, or gone."""
        if isinstance(event, Resumed):
            self.purge = event.step + 1  # curves past the checkpoint are drawn again
        if reading := self.readings(event):
            self.log(reading)
        if isinstance(event, Finished):
            self.close()

    def log(self, reading: Reading) -> None:
        writer = self._open()
        for name, value in reading.values.items():
            writer.add_scalar(name, value, reading.step)
        for name, path in reading.pictures.items():
            writer.add_image(name, _pixels(path), reading.step, dataformats="HWC")
        for name, text in reading.texts.items():
            writer.add_text(name, text, reading.step)
        if reading.pictures:
            writer.flush()

    def close(self) -> None:
        if self.writer:
            self.writer.close()
        self.writer = None

    def _open(self) -> Any:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            threading.excepthook = _unless_told_again
            self.writer = SummaryWriter(str(self.folder), purge_step=self.purge)
            for name, text in self.texts.items():
                self.writer.add_text(name, text, 0)
        return self.writer


_shown = threading.excepthook


def _unless_told_again(ended: "threading.ExceptHookArgs") -> None:
    """What stops the thread that writes is raised at the next value, too: it is told there, and not as a traceback."""
    if type(ended.thread).__name__ != "_AsyncWriterThread":
        _shown(ended)


def _pixels(path: Path) -> Any:
    """(height, width, 3), uint8."""
    import numpy
    from PIL import Image

    with Image.open(path) as image:
        return numpy.asarray(image.convert("RGB"))
