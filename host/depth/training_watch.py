"""Progress of a training in the host, with the curve of its loss, and its interruption."""

import logging
import time
from dataclasses import dataclass

import comfy.model_management
import comfy.utils

from ...depth_head.training import TrainingStopped
from ...pictures.loss_curve import loss_preview

PREVIEW_SECONDS = 1.0


@dataclass
class TrainingWatch:
    """node: its name in messages. loss: the name of the loss. before: progress made before the first step."""

    node: str
    loss: str
    progress: comfy.utils.ProgressBar
    before: int = 0
    shown_at: float = 0.0

    def on_step(self, done: int, losses: list[float]) -> None:
        """Raises TrainingStopped when the user interrupts: training ends, and the graph goes on."""
        preview = None
        if done and time.monotonic() > self.shown_at + PREVIEW_SECONDS:
            self.shown_at = time.monotonic()
            preview = ("JPEG", loss_preview(losses, self.loss), None)
        try:
            self.progress.update_absolute(self.before + done, preview=preview)
            comfy.model_management.throw_exception_if_processing_interrupted()
        except comfy.model_management.InterruptProcessingException as interrupted:
            if not done:
                raise
            logging.info("%s: interrupted after %d steps; what it has learned is kept.", self.node, done)
            raise TrainingStopped from interrupted
