"""Progress of a training in the host, with the curve of its loss."""

import time
from dataclasses import dataclass

import comfy.model_management
import comfy.utils

from ...pictures.loss_curve import loss_preview

PREVIEW_SECONDS = 1.0


@dataclass
class TrainingWatch:
    """loss: its name. before: progress made before the first step."""

    loss: str
    progress: comfy.utils.ProgressBar
    before: int = 0
    shown_at: float = 0.0

    def on_step(self, done: int, losses: list[float]) -> None:
        """Show how far the training is. Raises the host's exception when the user has interrupted."""
        preview = None
        if done and time.monotonic() > self.shown_at + PREVIEW_SECONDS:
            self.shown_at = time.monotonic()
            preview = ("JPEG", loss_preview(losses, self.loss), None)
        self.progress.update_absolute(self.before + done, preview=preview)
        comfy.model_management.throw_exception_if_processing_interrupted()
