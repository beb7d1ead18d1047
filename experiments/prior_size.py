"""At which size should a depth prior see depth maps (DAG, section 4)?

    python -m tools.run experiments.prior_size [--work FOLDER]      writes prior_size.md

The paper finds 128 x 128 best. Its heads read features of a model of 256 x 256 pixels. The pack's heads give
maps of an eighth of the image's side, 64 at 512 px; a larger prior gets them enlarged. Priors of three sizes
are trained on the same renders for the same number of steps. The tables compare their cost, where their
gradients point, and the pictures that they guide.

Priors and pictures are kept in the work folder, so a second call resumes an interrupted one. The largest
prior trains for an hour on one core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from ..demo.labelled_scenes import labelled_scenes
from ..demo.train_depth import train_demo_prior
from ..depth_head.prior import DepthPrior
from ..guidance.depth_aware import PRIOR_NOISES
from ..tools.setup_host import ROOT
from . import markdown
from .dag_judges import Judges
from .dag_pictures import Drawings, read_prior
from .dag_rows import NONE, Group, Row
from .dag_table import LEGEND, table
from .prior_levels import cosine_to_real, real_and_broken
from .seeds import PRIOR_TUNING, TUNING

COMMAND = "python -m tools.run experiments.prior_size"
TABLE = ROOT / "docs" / "results" / "prior_size.md"
SCENES = 4000
HEAD_SIZES = (32, 64)
"""Sides of the depth maps that heads give, at 256 and at 512 px."""
LEVELS = (10, 50)
"""Timesteps between which guidance asks a prior (PRIOR_LEVELS), of 1000."""
MAPS, BATCH_SIZE, REPEATS = 20, 16, 3
ONLY_PRIOR = {"consistency_scale": 0.0, "target_scale": 0.0}


class PriorTraining(NamedTuple):
    """Size of the maps and number of training steps of a prior."""

    size: int
    steps: int

    def __str__(self) -> str:
        return f"{self.size} px, {self.steps} steps"


TRAININGS = tuple(PriorTraining(size, 1000) for size in (32, 64, 128))


def main() -> None:
    """Trains and measures the priors, draws with them, and writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=100, help="pictures that each prior guides")
    parser.add_argument("--work", type=Path, default=Path(".cache/prior_size"))
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    work = options.work.resolve()
    files = {training: prior_file(training, work) for training in TRAININGS}
    rows = {NONE: Row(None)} | {
        str(training): Row(ONLY_PRIOR, prior=file) for training, file in files.items()
    }
    group = Group("How they change pictures", rows, options.samples, TUNING, steps=12, side=4)
    with torch.inference_mode():
        priors = {training: read_prior(file) for training, file in files.items()}
        drawings = Drawings(work)
        lines = [*heading(drawings.checksums["depth_prior"]), *costs(priors), *gradients(priors)]
        judges = Judges(drawings)
        lines += table(judges, group)
        judges.write_sheets("pictures", group)
    options.out.write_text("\n".join([*lines, *LEGEND, ""]), encoding="utf-8")
    print(options.out.read_text(encoding="utf-8"))


def prior_file(training: PriorTraining, work: Path) -> Path:
    """The file of a prior, trained if it does not exist."""
    path = work / f"{training.size}-{training.steps}" / "depth_prior.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode():
            train_demo_prior(path, SCENES, training.steps, training.size, seed=0)
    return path


def heading(shipped: str) -> list[str]:
    """Title and command. shipped: how the SHA-256 of the demo model's own prior begins."""
    return [
        "# At which size should a depth prior see depth maps?",
        "",
        f"`{COMMAND}`: priors of {len(TRAININGS)} sizes, each trained on the depth of {SCENES} renders of "
        f'the demo world in steps of {BATCH_SIZE} maps. The column "prior\'s loss" is that of the shipped '
        f"prior, whose SHA-256 begins {shipped}.",
        "",
    ]


def costs(priors: Mapping[PriorTraining, DepthPrior]) -> list[str]:
    """Seconds of a prior in a training step and in a guided step, at each size."""
    rows = {
        f"{training.size} px": [
            f"{seconds(prior, BATCH_SIZE, trains=True):.2f}",
            f"{seconds(prior, PRIOR_NOISES, trains=False):.3f}",
        ]
        for training, prior in priors.items()
    }
    return [
        "## What they cost",
        "",
        f"Seconds on {torch.get_num_threads()} of two cores, median of {REPEATS}: forward and backward for a "
        f"training step, and forward for the {PRIOR_NOISES} noises of a guided step.",
        "",
        *markdown.table(["training step", "guided step"], rows),
        "",
    ]


@torch.inference_mode(False)
def seconds(prior: DepthPrior, maps: int, trains: bool) -> float:
    """Median time to evaluate a batch of maps; trains: with the gradient of the weights."""
    noised, timesteps = torch.randn(maps, 1, prior.size, prior.size), torch.full((maps,), 25.0)
    prior.unet.requires_grad_(trains)
    measured = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        with torch.set_grad_enabled(trains):
            predicted = prior.unet(noised, timesteps)
        if trains:
            predicted.square().mean().backward()
        measured.append(time.perf_counter() - started)
    prior.unet.requires_grad_(False)
    return statistics.median(measured[1:])


def gradients(priors: Mapping[PriorTraining, DepthPrior]) -> list[str]:
    """Whether the gradient of each prior points from broken maps to the real ones, at the sizes of heads."""
    lines = [
        "## Where their gradients point",
        "",
        "Mean cosine between the direction in which a prior moves a broken map and the direction to the real "
        f"map, of {MAPS} maps that no prior saw, at tau = {', '.join(map(str, LEVELS))} of 1000. The maps "
        "are broken as in prior_levels.md.",
        "",
    ]
    for side in HEAD_SIZES:
        depths = labelled_scenes(PRIOR_TUNING[:MAPS], side).depths
        with torch.inference_mode(False):
            depth = depths[..., 0].unsqueeze(1)
            maps = {name: of_kind.clone() for name, of_kind in real_and_broken(depth, seed=0).items()}
            broken = [name for name in maps if name != "real"]
            rows = {}
            for training, prior in priors.items():
                cosines = [
                    statistics.mean(cosine_to_real(prior, maps[name], maps["real"], t, False) for t in LEVELS)
                    for name in broken
                ]
                rows[str(training)] = [f"{cosine:.2f}" for cosine in cosines]
        lines += [
            f"Maps of {side} px, as a head reads them at {8 * side} px:",
            "",
            *markdown.table(broken, rows),
            "",
        ]
    return lines
