"""Shows pictures on a node while a sampler runs, with the host's own previews."""

import math
import time
from collections.abc import Callable

from comfy_execution.progress import get_progress_state
from PIL import Image
from torch import Tensor

from ..pictures.captions import to_bytes

SECONDS_BETWEEN = 0.5


class LivePreview:
    """The preview of one run. node_id: the node that shows it, or None. steps: length of the progress bar."""

    def __init__(self, node_id: str | None, steps: int) -> None:
        self.node_id = node_id
        self.steps = steps
        self.shown = -math.inf

    def show(self, done: int, picture: Callable[[], Tensor | None]) -> None:
        """Show a picture (h, w, 3) after `done` steps: at most one in SECONDS_BETWEEN, and always the last.

        picture is called only if it is shown. It may return None, which moves the progress bar alone.
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
