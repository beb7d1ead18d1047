"""The networks that judge pictures, by the seed of their training. They were trained on renders alone."""

from __future__ import annotations

from pathlib import Path

from ..demo import model as demo
from ..demo.depth_judge import DEPTH_JUDGE_FILE, DepthJudge
from ..demo.recogniser import RECOGNISER_FILE, Recogniser
from .other_seeds import folder_of


def judge_files(seed: int) -> tuple[Path, Path]:
    """The files of depth judge and recogniser; seed 0 for those of the demo model."""
    return folder_of(seed) / DEPTH_JUDGE_FILE, folder_of(seed) / RECOGNISER_FILE


def load_judges(seed: int = 0) -> tuple[DepthJudge, Recogniser]:
    """Depth judge and recogniser."""
    judges = DepthJudge().eval(), Recogniser().eval()
    for network, file in zip(judges, judge_files(seed), strict=True):
        network.load_state_dict(demo.read_weights(file))
    return judges
