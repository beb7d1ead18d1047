"""The figures of the depth guidance experiment, as functions of tensors.

Depth is relative inverse depth, (N, 1, h, w), near = 1. Cameras of the demo world measure depth along their
axis, so 1 / depth of a plane is affine in the image plane, and so is relative inverse depth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..demo.ray_casting import FIRST_SOLID
from ..depth_head.metrics import DepthRange, fit_to_label

SURE = 0.8
"""Least probability at which a cell counts as showing a surface."""
LEAST_CELLS = 20
"""Cells that a plane needs to count."""


def depth_features(depth: Tensor, side: int) -> Tensor:
    """The features of dFID: area averages of depth maps, (N, side * side)."""
    return F.interpolate(depth, (side, side), mode="area").flatten(1)


def planarity(depth: Tensor, surfaces: Tensor) -> Tensor:
    """RMS distance (N,) of the depth on floor and walls from a plane through each; nan without any plane.

    surfaces: log-odds (N, SURFACES, h, w); those below FIRST_SOLID are planes. The border of a plane does not
    count, because its cells may show two surfaces. A plane with fewer than LEAST_CELLS other cells does not
    count either.
    """
    count, _, height, width = depth.shape
    sure = (surfaces.softmax(1)[:, :FIRST_SOLID] > SURE).double()
    inner = 1 - F.max_pool2d(1 - sure, 3, stride=1, padding=1)
    cells = inner.flatten(2)
    cells = cells * (cells.sum(-1, keepdim=True) >= LEAST_CELLS)

    v, u = torch.meshgrid(
        *(torch.linspace(-1, 1, side, dtype=torch.float64) for side in (height, width)), indexing="ij"
    )
    affine = torch.stack([torch.ones_like(u), u, v], -1).flatten(0, 1)
    values = depth.double().flatten(1)
    normal = torch.einsum("nps,si,sj->npij", cells, affine, affine)
    moments = torch.einsum("nps,si,ns->npi", cells, affine, values)
    planes = torch.einsum("npij,npj->npi", torch.linalg.pinv(normal, hermitian=True), moments)
    residual = values[:, None] - torch.einsum("npi,si->nps", planes, affine)
    squares = (cells * residual.square()).sum((1, 2))
    seen = cells.sum((1, 2))
    return torch.where(seen > 0, (squares / seen.clamp(min=1)).sqrt(), torch.nan).view(count)


def distance_after_alignment(estimate: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference (N,) after scale and shift of the estimate are fitted to the truth."""
    return (fit_to_label(estimate, truth) - truth).abs().mean((1, 2, 3))


def abs_rel_after_alignment(estimate: Tensor, truth: Tensor, near: float, far: float) -> Tensor:
    """AbsRel (N,) in metres after scale and shift of the estimate are fitted to the truth."""
    metres = DepthRange(near, far).metres
    z, expected = metres(fit_to_label(estimate, truth).clamp(0, 1)), metres(truth)
    return ((z - expected).abs() / expected).mean((1, 2, 3))


def warp(pictures: Tensor, strength: float, seed: int) -> Tensor:
    """Pictures (N, H, W, 3) in uint8, warped smoothly, on average by `strength` of their side."""
    shape = (len(pictures), 2, 5, 5)
    field = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    field = F.interpolate(field, pictures.shape[1:3], mode="bicubic").movedim(1, -1)
    field = field * (2 * strength / field.norm(dim=-1).mean())
    straight = F.affine_grid(
        torch.eye(2, 3).expand(len(pictures), 2, 3),
        [len(pictures), 3, *pictures.shape[1:3]],
        align_corners=False,
    )
    bent = F.grid_sample(
        pictures.movedim(-1, 1).float(), straight + field, padding_mode="reflection", align_corners=False
    )
    return bent.movedim(1, -1).round().clamp(0, 255).to(torch.uint8)


def fidelity(objects: Tensor, present: Tensor, main: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each picture's main object is recognised, and the share of its objects that are; (N,) each.

    objects (N, kinds): probabilities. present (N, kinds): 1 for kinds that the picture should show. main
    (N,): the kind of the main object.
    """
    found = (objects > 0.5).float()
    return found[torch.arange(len(main)), main], (found * present).sum(1) / present.sum(1)
