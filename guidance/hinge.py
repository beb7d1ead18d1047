"""The hinge of a calibrated loss: it asks nothing of an image that is as good as real ones.

    L        a loss of one image
    mu, s    mean and standard deviation of L over real images, at the same noise level

    H(L) = 0                     L <= mu
           (L - mu)^2 / (2 s)    mu < L < mu + s
           L - mu - s / 2        mu + s <= L

Real images do not have the least possible loss, so that is not where to lead an image. With H in place of L,
the gradient is H'(L) grad L: none up to the level of real images, all of it from one deviation above.
Derivation: docs/derivations.md.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Level(NamedTuple):
    """The mean and the standard deviation of a loss over real images, (B,) each: at each image's time."""

    mean: Tensor
    deviation: Tensor


def hinge_slope(loss: Tensor, level: Level) -> Tensor:
    """H'(L) = clamp((L - mu) / s, 0, 1), (B,); a constant for autograd. With s = 0, whether L > mu."""
    above = loss.detach() - level.mean
    return (above / level.deviation.clamp_min(torch.finfo(loss.dtype).tiny)).clamp(0, 1)
