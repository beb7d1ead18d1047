"""The recogniser and the depth judge that see the pictures of sag_experiment.py."""

from __future__ import annotations

from torch import Tensor

from ..demo import model as demo
from ..demo.depth_judge import judge
from ..demo.recogniser import recognise
from .dag_figures import depth_features
from .judges import judge_files, load_judges
from .kept_files import checksum
from .sag_rows import Seen
from .set_figures import detail

CELLS = 8
"""dFID compares depth maps of CELLS x CELLS."""


class SagJudges:
    """Judges that were trained on renders alone. seed: of their training; 0 for those of the demo model."""

    def __init__(self, seed: int) -> None:
        self.depth_judge, self.recogniser = load_judges(seed)
        depth_judge, recogniser = judge_files(seed)
        files = demo.WEIGHTS / demo.AUTOENCODER_FILE, recogniser, depth_judge
        self.judged_by = [checksum(path) for path in files]
        """The files that determine what they see in a latent."""

    def look(self, pictures: Tensor) -> Seen:
        """What they see in pictures (N, H, W, 3) in [0, 1]."""
        recognised = recognise(self.recogniser, pictures)
        return {
            "features": recognised.features,
            "objects": recognised.logits["objects"],
            "depth": depth_features(judge(self.depth_judge, pictures).depth, CELLS),
            "detail": detail(pictures),
        }
