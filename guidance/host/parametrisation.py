"""How a model's latent is made of image and noise."""

from typing import Any

import comfy.model_sampling
import torch
from torch import Tensor


def signal_and_velocity(model_sampling: Any, sigma: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    """a_t, the coefficient of x0 in x, and b^2, the squared share of the noise in it.

    Both (B, 1, ...) of `ndim` dimensions, for sigma (B,).
    a_t is asked of the host's own noising, so it is right for a parametrisation that this pack has never
    heard of: 1 for eps, v and EDM, 1 - sigma for flow models. b^2 = sigma^2 / (sigma^2 + sigma_data^2), which
    is 1 - abar, and sigma for flow models.
    """
    zeros = torch.zeros(sigma.shape[0], *[1] * (ndim - 1), device=sigma.device)
    signal = model_sampling.noise_scaling(sigma, zeros, torch.ones_like(zeros))
    sigma = sigma.view_as(zeros).float()
    if isinstance(model_sampling, comfy.model_sampling.CONST):
        return signal, sigma
    return signal, sigma**2 / (sigma**2 + model_sampling.sigma_data**2)


def noise_share(model_sampling: Any, sigma: Tensor, ndim: int) -> Tensor:
    """b, the share of the noise in x: c / sqrt(a^2 s^2 + c^2) for x = a x0 + c noise, data of deviation s.

    (B, 1, ...) of `ndim` dimensions, for sigma (B,). a and c are asked of the host's own noising.
    """
    zeros = torch.zeros(sigma.shape[0], *[1] * (ndim - 1), device=sigma.device)
    signal = model_sampling.noise_scaling(sigma, zeros, torch.ones_like(zeros))
    noise = model_sampling.noise_scaling(sigma, torch.ones_like(zeros), zeros)
    deviation = getattr(model_sampling, "sigma_data", 1.0)
    return noise / (noise**2 + (signal * deviation) ** 2).sqrt()
