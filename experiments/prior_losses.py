"""The two losses that a depth prior gives depth maps, at one of its timesteps (DAG, section 3.4)."""

from __future__ import annotations

from torch import Tensor

from ..depth_head.prior import DepthPrior, schedule, to_prior
from ..guidance.depth_aware import denoised_prior_loss, prior_loss
from ..host.depth.calibration import eps_phi


def literal_loss(prior: DepthPrior, depth: Tensor, eta: Tensor, t: int) -> Tensor:
    """L_dp (N,) of depth (N, 1, h, w) with noise eta (N, 1, size, size). Differentiable."""
    return prior_loss(to_prior(depth, prior.size), eta, _abar(t), eps_phi(prior.unet, t))


def denoised_loss(prior: DepthPrior, depth: Tensor, etas: Tensor, t: int) -> Tensor:
    """Squared distance (N,) of depth (N, 1, h, w) from its denoised maps; etas (n, N, 1, size, size)."""
    return denoised_prior_loss(to_prior(depth, prior.size), etas, _abar(t), eps_phi(prior.unet, t))


def _abar(t: int) -> float:
    return float(schedule()[t])
