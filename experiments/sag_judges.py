"""The recogniser and the depth judge that see the pictures of sag_experiment.py."""

from __future__ import annotations

from torch import Tensor

from ..demo import model as demo
from ..demo.depth_judge import DEPTH_JUDGE_FILE, DepthJudge, judge
from ..demo.recogniser import RECOGNISER_FILE, Recogniser, recognise
from .dag_figures import depth_features
from .kept_files import checksum
from .other_seeds import OTHER_SEEDS
from .sag_rows import Seen
from .set_figures import detail

CELLS = 8
"""dFID compares depth maps of CELLS x CELLS."""


class SagJudges:
    """Judges that were trained on renders alone. seed: of their training; 0 for those of the demo model."""

    def __init__(self, seed: int) -> None:
        folder = OTHER_SEEDS / str(seed) if seed else demo.WEIGHTS
        self.recogniser, self.depth_judge = Recogniser().eval(), DepthJudge().eval()
        self.recogniser.load_state_dict(demo.read_weights(folder / RECOGNISER_FILE))
        self.depth_judge.load_state_dict(demo.read_weights(folder / DEPTH_JUDGE_FILE))
        files = demo.WEIGHTS / demo.AUTOENCODER_FILE, folder / RECOGNISER_FILE, folder / DEPTH_JUDGE_FILE
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
