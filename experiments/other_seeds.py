"""Depth priors and heads that differ from the demo model's in the seed of their training.

    python -m tools.run demo.train_depth prior --size 32 --seed 1 --out .cache/other_seeds/1
    python -m tools.run demo.train_depth head --seed 1 --out .cache/other_seeds/1

and the same with seed 2.
"""

from dataclasses import replace
from pathlib import Path

from ..demo import model as demo
from .dag_rows import NONE, Group, Row, compared, only

OTHER_SEEDS = Path(".cache/other_seeds")
"""Folder of networks that differ from the demo model's in the seed of their training, in folders by seed."""


def of_other_seeds() -> dict[str, Group]:
    """The groups of `seeds`: priors and heads that `demo.train_depth --seed` wrote into OTHER_SEEDS."""
    rows = {NONE: Row(None)}
    for seed in (None, 1, 2):
        folder = None if seed is None else OTHER_SEEDS / str(seed)
        name = "shipped" if seed is None else f"seed {seed}"
        rows |= {
            f"DPG, prior {name}": Row(only("prior", 0.5), prior=folder and folder / demo.DEPTH_PRIOR_FILE),
            f"target, head {name}": Row(only("target"), head=folder and folder / demo.DEPTH_HEAD_FILE),
        }
    captions = compared()["captions"]
    return {"captions": replace(captions, title="Captions, CFG 3", rows=rows, samples=200)}
