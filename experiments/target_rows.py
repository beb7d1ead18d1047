"""Rows of dag_experiment.py that try to follow a target and keep the objects of the prompt."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..depth_head.calibration import LossLevels
from ..guidance import depth_aware as dag
from ..guidance.hinge import Level
from ..host.steering.dag_losses import DepthAwareSettings, of_batch
from .dag_rows import NONE, Group, Row, only
from .seeds import TUNING

LAST_TIME = 400
"""The time at which a target ends by default: 60 % of the sampling."""
SURE = 0.027
"""The RMS difference of the branches on renders (`demo.train_depth calibrate`)."""
REAL_TARGET = LossLevels((50, 200, 500, 800), (0.019, 0.020, 0.030, 0.071), (0.013, 0.014, 0.023, 0.039))
"""Levels of the target loss of 16 renders whose target is their own depth, read by the demo head."""
STILL_READ = 1e-6


def falling(term: dag.Term, settings: DepthAwareSettings, time: Tensor) -> dag.Term:
    """A strength that falls evenly to 0 where the target ends."""
    share = ((time.max().item() - LAST_TIME) / (1000 - LAST_TIME)) if settings.uses_target else 1.0
    return term._replace(strength=term.strength * max(0.0, share))


def as_close_as_renders(term: dag.Term, settings: DepthAwareSettings, time: Tensor) -> dag.Term:
    """A hinge: a target asks for no more than renders of it have."""
    return term._replace(level=Level(*REAL_TARGET.at(time)))


def where_sure(term: dag.Term, settings: DepthAwareSettings, time: Tensor) -> dag.Term:
    """A target that counts less where the branches differ."""
    if term.strength < 1e-3 or settings.target is None:
        return term
    maps = settings.target

    def loss(strong: Tensor, weak: Tensor) -> Tensor:
        doubt = (strong.detach() - weak.detach()).square() / SURE**2
        return dag.target_loss(strong, of_batch(maps, strong), 1 / (1 + doubt))

    return term._replace(loss=loss)


def kept() -> dict[str, Group]:
    """The group of `objects`."""
    target = Row(only("target"))
    rows = {
        NONE: Row(None),
        "target": target,
        "falling": replace(target, terms=falling),
        "falling, twice as strong": Row(only("target", 2.0), terms=falling),
        "as close as renders": replace(target, terms=as_close_as_renders),
        "each early step twice": replace(target, repeats=2),
        "each early step twice, half as strong": Row(only("target", 0.5), repeats=2),
        "where sure": Row(only("target") | {"consistency_scale": STILL_READ}, terms=where_sure),
    }
    group = Group("A target with captions", rows, 64, TUNING, steps=12, cfg=3.0, captions=True, side=4)
    return {"captions": group}
