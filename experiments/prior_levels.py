"""At which levels a depth prior tells real depth maps from broken ones (DAG, section 3.4), and how to ask it.

    python -m tools.run experiments.prior_levels      writes prior_levels.md

L_dp is a denoising loss: what is easy to denoise has little of it, and blurred or flattened maps are easy.
Guided at levels where these win, an image would lose its depth. The paper publishes no range of tau. And the
gradient of L_dp need not lead back from a broken map to the real one: its way is compared with that of the
loss which takes the map without its noise for a label (guidance/depth_aware.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tools.setup_host import ROOT

if TYPE_CHECKING:
    from inner_guidance.depth_head.prior import DepthPrior

COMMAND = "python -m tools.run experiments.prior_levels"
TABLE = ROOT / "docs" / "results" / "prior_levels.md"
FIRST_SCENE = 1_070_000
TIMESTEPS = (25, 50, 100, 150, 200, 300, 450, 600, 750)
BENT, ROUGH, FLATTER = 0.08, 0.03, 0.5
NOISES = 4
# The levels at which both losses are asked the way, and of how many maps.
LEVELS, ASKED_THE_WAY = (10, 25, 50, 100, 200), 40


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--maps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    from inner_guidance.demo import model as demo
    from inner_guidance.depth_head.prior_files import load_depth_prior
    from inner_guidance.host.depth.priors import make_unet
    from inner_guidance.nodes.demo_scenes import InnerDemoScenes

    prior = load_depth_prior(demo.WEIGHTS / demo.DEPTH_PRIOR_FILE, make_unet)
    with torch.inference_mode():
        _, depths = InnerDemoScenes.execute(FIRST_SCENE, options.maps, prior.size).result
        maps = variants(depths[..., 0].unsqueeze(1), seed=0)
        found = {name: losses(prior, depth) for name, depth in maps.items()}
    few = {name: depth[:ASKED_THE_WAY].clone() for name, depth in maps.items()}
    led = {
        name: [
            [straightness(prior, depth, few["real"], t, literal) for literal in (True, False)] for t in LEVELS
        ]
        for name, depth in few.items()
        if name != "real"
    }
    options.out.write_text("\n".join([*table(found, options.maps, prior.size), *table_of_ways(led)]))
    print(options.out.read_text())


def variants(depth: Tensor, seed: int) -> dict[str, Tensor]:
    """Depth maps (N, 1, s, s) as they are, and broken in ways that keep most of what they show."""
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


def straightness(prior: DepthPrior, broken: Tensor, real: Tensor, t: int, literal: bool) -> float:
    """How straight a loss leads from broken maps (N, 1, h, w) to the real ones, at timestep t.

    Mean cosine between the descent direction and the way back, over NOISES noises. literal: of L_dp, else of
    the denoised map as a label.
    """
    from inner_guidance.depth_head.prior import schedule, to_prior
    from inner_guidance.guidance.depth_aware import denoised_prior_loss, prior_loss

    size, abar = prior.size, float(schedule()[t])
    noises = torch.randn(NOISES, 1, 1, size, size, generator=torch.Generator().manual_seed(0))
    etas = noises.expand(-1, len(broken), -1, -1, -1)

    def eps_phi(noised: Tensor) -> Tensor:
        return prior.unet(noised, torch.full((len(noised),), float(t)))

    leaf = broken.clone().requires_grad_()
    seen = to_prior(leaf, size)
    if literal:
        asked = torch.stack([prior_loss(seen, eta, abar, eps_phi) for eta in etas])
    else:
        asked = denoised_prior_loss(seen, etas, abar, eps_phi)
    (gradient,) = torch.autograd.grad(asked.sum(), leaf)
    return F.cosine_similarity(-gradient.flatten(1), (real - broken).flatten(1)).mean().item()


def losses(prior: DepthPrior, depth: Tensor) -> Tensor:
    """L_dp (len(TIMESTEPS), N), each the mean over NOISES noises, which are the same for all maps."""
    from inner_guidance.depth_head.prior import schedule, to_prior
    from inner_guidance.guidance.depth_aware import prior_loss

    generator = torch.Generator().manual_seed(0)
    abar, seen = schedule(), to_prior(depth, prior.size)
    rows = []
    for t in TIMESTEPS:

        def eps_phi(noised: Tensor, t: int = t) -> Tensor:
            return prior.unet(noised, torch.full((len(noised),), float(t)))

        of_noises = []
        for _ in range(NOISES):
            eta = torch.randn(1, *seen.shape[1:], generator=generator).expand_as(seen)
            of_noises.append(prior_loss(seen, eta, float(abar[t]), eps_phi))
        rows.append(torch.stack(of_noises).mean(0))
    return torch.stack(rows)


def preferred(real: Tensor, other: Tensor) -> Tensor:
    """The share of maps whose real version has the lower loss; (levels, N) each, (levels,) out."""
    return (real < other).float().mean(1)


def table(found: dict[str, Tensor], count: int, size: int) -> Sequence[str]:
    """The figures in Markdown."""
    others = [name for name in found if name != "real"]
    rows = [
        f"| {t} | {found['real'][i].mean():.4f} | "
        + " | ".join(f"{preferred(found['real'], found[name])[i]:.0%}" for name in others)
        + " |"
        for i, t in enumerate(TIMESTEPS)
    ]
    return [
        "# Where a depth prior can be trusted",
        "",
        f"`{COMMAND}`: {count} depth maps of scenes that the demo world's prior ({size} px) never saw, "
        f"{NOISES} noises.",
        "",
        f"How often the real map has a lower loss L_dp than the same map bent (smooth noise of {BENT:g}), "
        f"rough (noise of {ROUGH:g}), upside down, blurred (to a quarter of the size and back), or flattened "
        f"(by {FLATTER:.0%}). Below 50 %, guidance by the loss would lead to the broken map.",
        "",
        f"| tau of 1000 | L_dp of real maps | {' | '.join(others)} |",
        "|---" * (len(others) + 2) + "|",
        *rows,
        "",
    ]


def table_of_ways(led: Mapping[str, Sequence[Sequence[float]]]) -> Sequence[str]:
    """How straight the two losses lead back, in Markdown."""
    rows = [
        f"| {t} | " + " | ".join(f"{way[i][0]:.2f} / {way[i][1]:.2f}" for way in led.values()) + " |"
        for i, t in enumerate(LEVELS)
    ]
    return [
        "## Which way it leads",
        "",
        "Mean cosine between the way that a loss asks a broken map to go and the way back to the real one, "
        f"of {ASKED_THE_WAY} maps: by L_dp / by the map without its noise as a label, over {NOISES} noises.",
        "",
        f"| tau of 1000 | {' | '.join(led)} |",
        "|---" * (len(led) + 1) + "|",
        *rows,
        "",
    ]
