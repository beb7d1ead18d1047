"""Trains the depth judge on renders, which are shrunk and labelled once."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .depth_judge import GRID, SIZE, DepthJudge, Judgement, depth_label
from .examples import Examples, JudgeTraining, train_on_examples
from .ray_casting import FIRST_SOLID, LEFT_WALL, RIGHT_WALL, render
from .recogniser import shrink
from .scenes import Scene

BATCH = 16
NOISE = 0.03
"""Largest standard deviation of the noise on training pictures, so that autoencoder faults do not matter."""
SURFACE_WEIGHT = 0.05
MIXED = 255
"""Label of a cell that shows more than one surface; the loss leaves it out."""


def train_depth_judge(options: JudgeTraining) -> dict[str, Tensor]:
    """The averaged weights."""
    return train_on_examples("depth judge", DepthJudge, _loss, label, BATCH, options)


def _loss(model: nn.Module, batch: Examples, rng: np.random.Generator) -> Tensor:
    pictures, labels = _augment(batch["pictures"].float() / 255, batch, rng)
    with torch.autocast(pictures.device.type, torch.bfloat16):
        seen = model(pictures)
    return judgement_loss(seen, labels)


def label(pictures: Tensor, scenes: list[Scene]) -> Examples:
    """Pictures of SIZE pixels, their depth, and the surfaces in their cells."""
    renders = [render(scene, size=2 * GRID) for scene in scenes]
    return {
        "pictures": shrink(pictures.float(), SIZE).round().to(torch.uint8),
        "depth": torch.stack([depth_label(seen.depth) for seen in renders]).half(),
        "surfaces": torch.stack([surface_label(seen.surface) for seen in renders]),
    }


def surface_label(surface: Tensor) -> Tensor:
    """Surface numbers (2 GRID, 2 GRID) to (GRID, GRID): the surface that fills a cell, or MIXED."""
    cells = surface.clamp(max=FIRST_SOLID).unflatten(0, (GRID, 2)).unflatten(2, (GRID, 2))
    low, high = cells.amin((1, 3)), cells.amax((1, 3))
    return torch.where(low == high, low, MIXED).to(torch.uint8)


def judgement_loss(seen: Judgement, labels: dict[str, Tensor]) -> Tensor:
    """Mean absolute error of the depth + SURFACE_WEIGHT * cross-entropy of the surfaces."""
    depth = (seen.depth - labels["depth"].float()).abs().mean()
    surfaces = F.cross_entropy(seen.surfaces.float(), labels["surfaces"].long(), ignore_index=MIXED)
    return depth + SURFACE_WEIGHT * surfaces


def _augment(
    pictures: Tensor, labels: dict[str, Tensor], rng: np.random.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mirrors half of the pictures (N, 3, H, W) with their labels; blurs all pictures and adds noise."""
    mirrored = torch.from_numpy(rng.random(len(pictures)) < 0.5).to(pictures.device)
    mirrored = mirrored[:, None, None]
    pictures = torch.where(mirrored[..., None], pictures.flip(-1), pictures)
    depth = torch.where(mirrored[..., None], labels["depth"].flip(-1), labels["depth"])
    surfaces = torch.where(mirrored, swap_sides(labels["surfaces"].flip(-1)), labels["surfaces"])

    blur, strength = torch.rand(2, len(pictures), 1, 1, 1, device=pictures.device)
    around = F.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    pictures = pictures.lerp(around, blur) + NOISE * strength * torch.randn_like(pictures)
    return pictures.contiguous(memory_format=torch.channels_last), {"depth": depth, "surfaces": surfaces}


def swap_sides(surfaces: Tensor) -> Tensor:
    """Surface numbers with left and right wall exchanged."""
    left, right = surfaces == LEFT_WALL, surfaces == RIGHT_WALL
    return surfaces.masked_fill(left, RIGHT_WALL).masked_fill(right, LEFT_WALL)
