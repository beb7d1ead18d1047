"""A network that estimates the depth of a picture of the demo world.

It is trained on renders alone and never sees the UNet or a drawn picture, so it can judge the effect of depth
guidance on drawn pictures. It also tells which cells show floor, walls and solids: on floor and walls, depth
must be planar.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..depth_head.metrics import DepthRange
from .ray_casting import FIRST_SOLID
from .recogniser import Residual, shrink
from .scenes import FAR, NEAR

DEPTH_JUDGE_FILE = "depth_judge.safetensors"
SIZE = 128
GRID = 32
WIDTHS = (24, 48, 64, 72)
SURFACES = FIRST_SOLID + 1
"""Number of classes of a cell: floor, back, left and right wall as in ray_casting.py, and solids."""


@dataclass(frozen=True)
class Judgement:
    """The outputs of the network for N pictures, cell by cell."""

    depth: Tensor
    """(N, 1, GRID, GRID), relative inverse depth in [0, 1], near = 1."""
    surfaces: Tensor
    """(N, SURFACES, GRID, GRID), log-odds."""


class DepthJudge(nn.Module):
    """A residual network down to 8 x 8 and up again to GRID x GRID, with a skip connection at each size."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third, fourth = WIDTHS
        self.to_grid = nn.Sequential(
            nn.Conv2d(3, first, 5, stride=2, padding=2),
            nn.SiLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            Residual(second),
        )
        self.to_16 = nn.Sequential(nn.Conv2d(second, third, 3, stride=2, padding=1), Residual(third))
        self.to_8 = nn.Sequential(nn.Conv2d(third, fourth, 3, stride=2, padding=1), Residual(fourth))
        self.whole = nn.Linear(fourth, fourth)
        self.from_8 = nn.Conv2d(fourth, third, 3, padding=1)
        self.at_16 = Residual(third)
        self.from_16 = nn.Conv2d(third, second, 3, padding=1)
        self.at_grid = nn.Sequential(Residual(second), nn.GroupNorm(8, second), nn.SiLU())
        self.out = nn.Conv2d(second, 1 + SURFACES, 1)

    def forward(self, pictures: Tensor) -> Judgement:
        """Pictures (N, 3, SIZE, SIZE) in [0, 1]."""
        at_grid = self.to_grid(pictures - 0.5)
        at_16 = self.to_16(at_grid)
        at_8 = self.to_8(at_16)
        at_8 = at_8 + self.whole(F.silu(at_8.mean((2, 3))))[:, :, None, None]
        at_16 = self.at_16(at_16 + _enlarge(self.from_8(at_8)))
        out = self.out(self.at_grid(at_grid + _enlarge(self.from_16(at_16))))
        return Judgement(out[:, :1].float().sigmoid(), out[:, 1:])


def _enlarge(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")


def depth_label(metres: Tensor) -> Tensor:
    """(H, W) metres to relative inverse depth (1, GRID, GRID): area averages, which keep planes affine."""
    return F.interpolate(DepthRange(NEAR, FAR).relative(metres)[None, None], (GRID, GRID), mode="area")[0]


@torch.inference_mode()
def judge(network: DepthJudge, pictures: Tensor) -> Judgement:
    """The outputs for pictures (N, H, W, 3) in uint8."""
    seen = [network(shrink(batch.float() / 255, SIZE)) for batch in pictures.split(50)]
    return Judgement(torch.cat([part.depth for part in seen]), torch.cat([part.surfaces for part in seen]))
