"""The depth convention, alignment of scale and shift, and error metrics.

Depth is relative inverse depth everywhere in this pack: r in [0, 1], near = 1. With the distances in metres
at which r is 1 (near) and 0 (far)

    1/z = r / near + (1 - r) / far

so r is linear in 1/z, as disparity is. Labels of unknown distances have no metres; near and far are then an
assumption, under which AbsRel and delta1 depend on far / near alone, and RMSE is in units of near.

All maps are (B, 1, h, w).
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# Least variance of a map that is aligned: below a standard deviation of 1e-4 it counts as flat.
FLAT_VARIANCE = 1e-8


@dataclass(frozen=True)
class DepthRange:
    """Distances in metres where relative inverse depth is 1 and 0; ValueError unless 0 < near < far < inf."""

    near: float
    far: float

    def __post_init__(self) -> None:
        if not 0 < self.near < self.far < math.inf:
            raise ValueError(
                f"near ({self.near:g} m) must be above 0 and below far ({self.far:g} m): they are the "
                "distances that white and black mean in the depth maps."
            )

    def relative(self, metres: Tensor) -> Tensor:
        """Metres to relative inverse depth, clamped to [0, 1]."""
        return ((1 / metres - 1 / self.far) / (1 / self.near - 1 / self.far)).clamp(0, 1)

    def metres(self, relative: Tensor) -> Tensor:
        """Relative inverse depth to metres."""
        return 1 / (relative / self.near + (1 - relative) / self.far)


def normalise(inverse_depth: Tensor) -> Tensor:
    """Inverse depth in any scale to relative: each image from its own farthest (0) to its nearest (1).

    A flat image is 0 throughout.
    """
    far, near = inverse_depth.aminmax(dim=-1, keepdim=True)
    far, near = far.amin(-2, keepdim=True), near.amax(-2, keepdim=True)
    return (inverse_depth - far) / (near - far).clamp_min(torch.finfo(inverse_depth.dtype).tiny)


def fit_to_label(depth: Tensor, label: Tensor) -> Tensor:
    """depth, scaled and shifted per image to the label: a * depth + b with the least squared difference.

    For labels of unknown scale and shift, such as those of most depth networks. Differentiable; the result
    may leave [0, 1], and a may be negative.
    """
    mean, goal = (t.mean(dim=(-2, -1), keepdim=True) for t in (depth, label))
    covariance = ((depth - mean) * (label - goal)).mean(dim=(-2, -1), keepdim=True)
    variance = (depth - mean).square().mean(dim=(-2, -1), keepdim=True)
    return covariance / variance.clamp_min(FLAT_VARIANCE) * (depth - mean) + goal


@dataclass(frozen=True)
class DepthMetrics:
    """Means over the images of figures of each image.

    abs_rel: |z - z*| / z*, mean of the pixels; lower is better. rmse: metres. delta1: share of the pixels
    with max(z / z*, z* / z) < 1.25; higher is better.
    """

    abs_rel: float
    rmse: float
    delta1: float

    def __str__(self) -> str:
        return f"AbsRel {self.abs_rel:.3f}, RMSE {self.rmse:.2f} m, delta1 {self.delta1:.2f}"


def measure(depth: Tensor, label: Tensor, depth_range: DepthRange, aligned: bool = False) -> DepthMetrics:
    """Judge relative inverse depth against labels. aligned: after `fit_to_label`."""
    if aligned:
        depth = fit_to_label(depth, label).clamp(0, 1)
    # On the CPU: not every device has double precision.
    z, truth = (depth_range.metres(t.cpu().double()) for t in (depth, label))
    ratio = torch.maximum(z / truth, truth / z)
    return DepthMetrics(
        abs_rel=((z - truth).abs() / truth).mean().item(),
        rmse=(z - truth).square().mean(dim=(-3, -2, -1)).sqrt().mean().item(),
        delta1=(ratio < 1.25).double().mean().item(),
    )


def average(metrics: list[DepthMetrics]) -> DepthMetrics:
    """The mean over batches of equally many images."""
    return DepthMetrics(
        **{
            field.name: sum(getattr(m, field.name) for m in metrics) / len(metrics)
            for field in fields(DepthMetrics)
        }
    )
