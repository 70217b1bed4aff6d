"""A run's numbers as TensorBoard's curves."""

from pathlib import Path
from typing import Any

from finetune.events import Event, Finished, Resumed, Scored, Stepped, Validated


class TensorBoard:
    """Losses, learning rates, gradient norms and held-out losses, beside the run. Opened at the first number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None
        self.purge: int | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case Resumed(step, _):
                self.purge = step + 1  # curves past the checkpoint are drawn again
            case Stepped():
                writer = self._open()
                writer.add_scalar("loss/train", event.loss, event.step)
                writer.add_scalar("gradient_norm", event.grad_norm, event.step)
                if event.prior_loss is not None:
                    writer.add_scalar("loss/prior", event.prior_loss, event.step)
                for component, rate in event.rates.items():
                    writer.add_scalar(f"learning_rate/{component}", rate, event.step)
            case Validated(step, loss, bands):
                writer = self._open()
                writer.add_scalar("loss/held_out", loss, step)
                for level, value in bands.items():
                    writer.add_scalar(f"loss/held_out_at_{level}", value, step)
            case Scored(step, _, scores):
                writer = self._open()
                for name, score in scores.items():
                    writer.add_scalar(f"scores/{name}", score.value, step)
            case Finished():
                self.close()

    def close(self) -> None:
        if self.writer:
            self.writer.close()
        self.writer = None

    def _open(self) -> Any:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder), purge_step=self.purge)
        return self.writer
