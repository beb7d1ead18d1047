"""At which timesteps a depth prior tells real depth maps from broken ones, and which loss to use (DAG, 3.4).

    python -m tools.run experiments.prior_levels      writes prior_levels.md

L_dp is a denoising loss. Maps that are easy to denoise have little of it, and blurred or flattened maps are
easy. Guidance at timesteps where such maps win would remove depth from an image. The paper publishes no range
of tau. The second table compares the gradient of L_dp with that of the loss that takes the denoised map as a
label (guidance/depth_aware.py): does it point from a broken map to the real one?
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..demo import model as demo
from ..demo.labelled_scenes import labelled_scenes
from ..depth_head.prior import DepthPrior
from ..depth_head.prior_files import load_depth_prior
from ..host.depth.priors import make_unet
from ..tools.setup_host import ROOT
from . import markdown
from .prior_losses import denoised_loss, literal_loss
from .seeds import PRIOR_TUNING

COMMAND = "python -m tools.run experiments.prior_levels"
TABLE = ROOT / "docs" / "results" / "prior_levels.md"
TIMESTEPS = (25, 50, 100, 150, 200, 300, 450, 600, 750)
BENT, ROUGH, FLATTER = 0.08, 0.03, 0.5
NOISES = 4
GRADIENT_TIMESTEPS, GRADIENT_MAPS = (10, 25, 50, 100, 200), 40


def main() -> None:
    """Measures, and writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--maps", type=int, default=100, help="depth maps, each real and broken in five ways")
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    prior = load_depth_prior(demo.WEIGHTS / demo.DEPTH_PRIOR_FILE, make_unet)
    with torch.inference_mode():
        depths = labelled_scenes(PRIOR_TUNING[: options.maps], prior.size).depths
        maps = real_and_broken(depths[..., 0].unsqueeze(1), seed=0)
        losses = {name: mean_losses(prior, depth) for name, depth in maps.items()}
    few = {name: depth[:GRADIENT_MAPS].clone() for name, depth in maps.items()}
    cosines = {
        name: [
            [cosine_to_real(prior, depth, few["real"], t, literal) for literal in (True, False)]
            for t in GRADIENT_TIMESTEPS
        ]
        for name, depth in few.items()
        if name != "real"
    }
    lines = [*table_of_losses(losses, options.maps, prior.size), *table_of_cosines(cosines)]
    options.out.write_text("\n".join(lines), encoding="utf-8")
    print(options.out.read_text(encoding="utf-8"))


def real_and_broken(depth: Tensor, seed: int) -> dict[str, Tensor]:
    """Depth maps (N, 1, s, s) as they are, and broken in five ways that keep most of their content."""
    generator = torch.Generator().manual_seed(seed)
    count, size = len(depth), depth.shape[-1]
    smooth = F.interpolate(
        torch.randn(count, 1, 4, 4, generator=generator), (size, size), mode="bicubic", align_corners=False
    )
    small = F.interpolate(depth, (size // 4, size // 4), mode="area")
    return {
        "real": depth,
        "bent": (depth + BENT * smooth).clamp(0, 1),
        "rough": (depth + ROUGH * torch.randn(depth.shape, generator=generator)).clamp(0, 1),
        "upside down": depth.flip(2),
        "blurred": F.interpolate(small, (size, size), mode="bilinear"),
        "flattened": depth.lerp(depth.mean((2, 3), keepdim=True), FLATTER),
    }


def cosine_to_real(prior: DepthPrior, broken: Tensor, real: Tensor, t: int, literal: bool) -> float:
    """Mean cosine between a loss's descent direction at broken maps (N, 1, h, w) and real - broken.

    literal: the loss is L_dp, else that of the denoised map as a label; over NOISES noises.
    """
    size = prior.size
    noises = torch.randn(NOISES, 1, 1, size, size, generator=torch.Generator().manual_seed(0))
    etas = noises.expand(-1, len(broken), -1, -1, -1)
    leaf = broken.clone().requires_grad_()
    if literal:
        loss = torch.stack([literal_loss(prior, leaf, eta, t) for eta in etas])
    else:
        loss = denoised_loss(prior, leaf, etas, t)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return F.cosine_similarity(-gradient.flatten(1), (real - broken).flatten(1)).mean().item()


def mean_losses(prior: DepthPrior, depth: Tensor) -> Tensor:
    """L_dp (len(TIMESTEPS), N), the mean over NOISES noises, which all maps share."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for t in TIMESTEPS:
        at_noises = []
        for _ in range(NOISES):
            eta = torch.randn(1, 1, prior.size, prior.size, generator=generator)
            at_noises.append(literal_loss(prior, depth, eta.expand(len(depth), -1, -1, -1), t))
        rows.append(torch.stack(at_noises).mean(0))
    return torch.stack(rows)


def share_preferred(real: Tensor, other: Tensor) -> Tensor:
    """Share of the maps with the lower loss in the real version, (timesteps,), of losses (timesteps, N)."""
    return (real < other).float().mean(1)


def table_of_losses(losses: Mapping[str, Tensor], count: int, size: int) -> list[str]:
    """Which maps L_dp prefers, in Markdown."""
    broken = [name for name in losses if name != "real"]
    shares = {name: share_preferred(losses["real"], losses[name]) for name in broken}
    rows = {
        f"tau = {t}": [f"{losses['real'][i].mean():.4f}", *(f"{shares[name][i]:.0%}" for name in broken)]
        for i, t in enumerate(TIMESTEPS)
    }
    return [
        "# Where a depth prior can be trusted",
        "",
        f"`{COMMAND}`: {count} depth maps of scenes that the demo world's prior ({size} px) never saw, "
        f"{NOISES} noises.",
        "",
        "How often the real map has a lower loss L_dp, at timestep tau of 1000, than the same map bent "
        f"(smooth noise of {BENT:g}), rough (noise of {ROUGH:g}), upside down, blurred (to a quarter of the "
        f"size and back), or flattened (by {FLATTER:.0%}). Below 50 %, guidance by the loss would lead to "
        "the broken map.",
        "",
        *markdown.table(["L_dp of real maps", *broken], rows),
        "",
    ]


def table_of_cosines(cosines: Mapping[str, Sequence[Sequence[float]]]) -> list[str]:
    """Where the gradients of the two losses point, in Markdown."""
    rows = {
        f"tau = {t}": [f"{of_map[i][0]:.2f} / {of_map[i][1]:.2f}" for of_map in cosines.values()]
        for i, t in enumerate(GRADIENT_TIMESTEPS)
    }
    return [
        "## Where the gradient points",
        "",
        "Mean cosine between the direction in which a loss moves a broken map and the direction to the real "
        f"map, of {GRADIENT_MAPS} maps: by L_dp / by the denoised map as a label, over {NOISES} noises.",
        "",
        *markdown.table(cosines, rows),
        "",
    ]
