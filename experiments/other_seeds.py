"""Depth priors, heads and judges that differ from the demo model's in the seed of their training.

    python -m tools.run demo.train_depth prior --size 32 --seed 1 --out .cache/other_seeds/1
    python -m tools.run demo.train_depth head --seed 1 --out .cache/other_seeds/1
    python -m tools.run demo.train depth_judge --minutes 6 --seed 1 --out .cache/other_seeds/1
    python -m tools.run demo.train recogniser --minutes 15 --seed 1 --out .cache/other_seeds/1

and the same with seed 2. The last two need the renders of `demo.train renders`.
"""

from dataclasses import replace
from pathlib import Path

from ..demo import model as demo
from ..demo.depth_judge import DEPTH_JUDGE_FILE
from ..demo.recogniser import RECOGNISER_FILE
from .dag_rows import NONE, Group, Row, compared, only

OTHER_SEEDS = Path(".cache/other_seeds")
"""Folder of networks that differ from the demo model's in the seed of their training, in folders by seed."""
FILES = demo.DEPTH_PRIOR_FILE, demo.DEPTH_HEAD_FILE, DEPTH_JUDGE_FILE, RECOGNISER_FILE


def folder_of(seed: int) -> Path:
    """The folder of the networks of a training seed; 0 for the demo model's."""
    return OTHER_SEEDS / str(seed) if seed else demo.WEIGHTS


def missing_files() -> list[Path]:
    """The files of the training seeds 1 and 2 that `of_other_seeds` needs and nobody has trained yet."""
    paths = (folder_of(seed) / name for seed in (1, 2) for name in FILES)
    return [path for path in paths if not path.exists()]


def of_other_seeds() -> dict[str, Group]:
    """The groups of `seeds`: by priors and heads of three training seeds, as judges of three seeds see it."""
    rows = {NONE: Row(None)}
    for seed in (None, 1, 2):
        folder = None if seed is None else OTHER_SEEDS / str(seed)
        name = "shipped" if seed is None else f"seed {seed}"
        rows |= {
            f"DPG, prior {name}": Row(only("prior", 0.5), prior=folder and folder / demo.DEPTH_PRIOR_FILE),
            f"target, head {name}": Row(only("target"), head=folder and folder / demo.DEPTH_HEAD_FILE),
        }
    captions = replace(compared()["captions"], rows=rows, samples=200)
    return {
        f"judges-{seed}": replace(captions, title=f"Captions, CFG 3, {judges}", judges=seed)
        for seed, judges in enumerate(("the demo model's judges", "judges of seed 1", "judges of seed 2"))
    }
