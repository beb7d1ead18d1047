"""Shows a picture on one of our nodes while a sampler runs, by the host's own previews."""

import math
import time
from collections.abc import Callable

from comfy_execution.progress import get_progress_state
from PIL import Image
from torch import Tensor

from ..pictures.captions import to_bytes

SECONDS_BETWEEN = 0.5


class LivePreview:
    """The preview of one run on the node `node_id`, None for nowhere; `steps` fill its progress bar."""

    def __init__(self, node_id: str | None, steps: int) -> None:
        self.node_id = node_id
        self.steps = steps
        self.shown = -math.inf

    def show(self, done: int, picture: Callable[[], Tensor | None]) -> None:
        """Show a picture (h, w, 3) after `done` steps, unless the last is too young, and after all.

        It is made only where it is shown; None shows nothing.
        """
        now = time.monotonic()
        if self.node_id is None or (now - self.shown < SECONDS_BETWEEN and done < self.steps):
            return
        self.shown = now
        made = picture()
        image = None if made is None else ("JPEG", Image.fromarray(to_bytes(made)), None)
        get_progress_state().update_progress(self.node_id, done, self.steps, image)

    def end(self) -> None:
        """The node is done."""
        if self.node_id is not None:
            get_progress_state().finish_progress(self.node_id)
