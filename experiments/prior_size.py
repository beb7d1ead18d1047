"""At which size should a depth prior see depth maps (DAG, section 4)?

    python -m tools.run experiments.prior_size [--work FOLDER]      writes prior_size.md

The paper finds 128 x 128 best. Its heads read depth from the features of a model of 256 x 256 pixels; ours
read an eighth of the image's side, 64 at 512 px, which a larger prior sees enlarged. Priors of three sizes
are trained on the same renders for as many steps, asked the way that broken maps should go, and guide.

Priors and pictures are kept in the work folder: a call goes on where another one ended. Those of the largest
size take an hour of one core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..tools.setup_host import ROOT
from .guidance_tables import LEGEND, table
from .guided_pictures import BATCH, NONE, Drawings, Group, Row, read_prior
from .picture_judges import Judges
from .prior_levels import FIRST_SCENE, straightness, variants

if TYPE_CHECKING:
    from inner_guidance.depth_head.prior import DepthPrior

COMMAND = "python -m tools.run experiments.prior_size"
TABLE = ROOT / "docs" / "results" / "prior_size.md"
SCENES = 4000
# Sides of the depth maps that heads read, at 256 and at 512 px.
HEAD_SIZES = (32, 64)
# The levels that guidance asks a prior at (PRIOR_LEVELS), of 1000.
LEVELS = (10, 50)
MAPS, BATCH_SIZE, REPEATS = 20, 16, 3
ONLY_PRIOR = {"consistency_scale": 0.0, "target_scale": 0.0}


class Training(NamedTuple):
    """How a prior is made: steps of 16 maps, size x size."""

    size: int
    steps: int

    def __str__(self) -> str:
        return f"{self.size} px, {self.steps} steps"


TRAININGS = tuple(Training(size, 1000) for size in (32, 64, 128))


def main() -> None:
    """Trains, asks, draws, and writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=100, help="pictures that each prior guides")
    parser.add_argument("--work", type=Path, default=Path(".cache/prior_size"))
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    work = options.work.resolve()
    files = {training: trained(training, work) for training in TRAININGS}
    rows = {NONE: Row(None)} | {
        str(training): Row(ONLY_PRIOR, prior=file) for training, file in files.items()
    }
    group = Group("What they do to pictures", rows, options.samples, steps=12, side=4)
    with torch.inference_mode():
        priors = {training: read_prior(file) for training, file in files.items()}
        drawings = Drawings(work)
        lines = [*heading(drawings.checksums["depth_prior"]), *costs(priors), *ways(priors)]
        for row in rows:
            for first in range(0, group.samples, BATCH):
                drawings.draw(group, row, first)
        judges = Judges(drawings)
        lines += table(judges, group, {})
        judges.write_sheets("pictures", group)
    options.out.write_text("\n".join([*lines, *LEGEND, ""]))
    print(options.out.read_text())


def trained(training: Training, work: Path) -> Path:
    """The file of a prior, made if it is not there."""
    from inner_guidance.demo.train_depth import train_prior

    path = work / f"{training.size}-{training.steps}" / "depth_prior.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode():
            train_prior(path, SCENES, training.steps, training.size)
    return path


def heading(shipped: str) -> list[str]:
    """What was done. shipped: the checksum of the demo model's own prior."""
    return [
        "# At which size should a depth prior see depth maps?",
        "",
        f"`{COMMAND}`: priors of {len(TRAININGS)} sizes, each trained on the depth of {SCENES} renders of "
        f"the demo world in steps of {BATCH_SIZE} maps. The prior's loss is that of the prior whose SHA-256 "
        f"begins {shipped}.",
        "",
    ]


def costs(priors: Mapping[Training, DepthPrior]) -> list[str]:
    """Seconds of a training step and of what a guided step asks, at each size."""
    from inner_guidance.guidance.depth_aware import PRIOR_NOISES

    rows = []
    for size, prior in {training.size: prior for training, prior in priors.items()}.items():
        look = seconds(prior, PRIOR_NOISES, trains=False)
        rows.append(f"| {size} px | {seconds(prior, BATCH_SIZE, trains=True):.2f} | {look:.3f} |")
    return [
        "## What they cost",
        "",
        f"Seconds on {torch.get_num_threads()} of two cores, median of {REPEATS}: forward and backward for a "
        f"training step, and forward for the {PRIOR_NOISES} noises that a guided step asks about.",
        "",
        "| | training step | guided step |",
        "|---|---|---|",
        *rows,
        "",
    ]


@torch.inference_mode(False)
def seconds(prior: DepthPrior, maps: int, trains: bool) -> float:
    """The median time of an evaluation of so many maps, with the gradient of the weights where it trains."""
    noised, timesteps = torch.randn(maps, 1, prior.size, prior.size), torch.full((maps,), 25.0)
    prior.unet.requires_grad_(trains)
    taken = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        with torch.set_grad_enabled(trains):
            predicted = prior.unet(noised, timesteps)
        if trains:
            predicted.square().mean().backward()
        taken.append(time.perf_counter() - started)
    prior.unet.requires_grad_(False)
    return statistics.median(taken[1:])


def ways(priors: Mapping[Training, DepthPrior]) -> list[str]:
    """How straight each prior leads from broken maps to the real ones, at the sizes that heads read."""
    from inner_guidance.nodes.demo_scenes import InnerDemoScenes

    lines = [
        "## Which way they lead",
        "",
        "Mean cosine between the way that a prior asks a broken map to go and the way back to the real one, "
        f"of {MAPS} maps that no prior saw, at tau = {', '.join(map(str, LEVELS))} of 1000. They are broken "
        "as in prior_levels.md.",
        "",
    ]
    for side in HEAD_SIZES:
        _, depths = InnerDemoScenes.execute(FIRST_SCENE, MAPS, side).result
        with torch.inference_mode(False):
            maps = {name: depth.clone() for name, depth in variants(depths[..., 0].unsqueeze(1), 0).items()}
            broken = [name for name in maps if name != "real"]
            lines += [
                f"Maps of {side} px, as a head reads them at {8 * side} px:",
                "",
                f"| | {' | '.join(broken)} |",
                "|---" * (len(broken) + 1) + "|",
            ]
            for training, prior in priors.items():
                led = [
                    statistics.mean(straightness(prior, maps[name], maps["real"], t, False) for t in LEVELS)
                    for name in broken
                ]
                lines.append(f"| {training} | {' | '.join(f'{way:.2f}' for way in led)} |")
        lines.append("")
    return lines
