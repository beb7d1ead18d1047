"""The noise level of a latent: as sigma, as time, and as the shares of signal and noise in it.

Time is the noise level as heads know it: continuous, in [0, 1000). Where the model's schedule has timesteps,
time is the timestep. For others it is 1000 times the share of noise in the latent: sigma for flow models,
sigma / (sigma + sigma_data) for the rest.
"""

import math
from typing import Any

import comfy.model_sampling
import torch
from torch import Tensor

TIMES = 1000


def sigma_at(model_sampling: Any, time: Tensor) -> Tensor:
    """Time (B,) to sigma (B,)."""
    if has_timesteps(model_sampling):
        return model_sampling.sigma(time)
    if isinstance(model_sampling, comfy.model_sampling.CONST):
        return time / TIMES
    # EDM conditions its network on log sigma, which is not finite at 0.
    share = time.clamp_min(1) / TIMES
    return model_sampling.sigma_data * share / (1 - share)


def time_at(model_sampling: Any, sigma: Tensor) -> Tensor:
    """Sigma (B,) to time (B,); to the nearest timestep if the schedule has timesteps."""
    if has_timesteps(model_sampling):
        return model_sampling.timestep(sigma).float()
    if isinstance(model_sampling, comfy.model_sampling.CONST):
        return sigma * TIMES
    return sigma / (sigma + model_sampling.sigma_data) * TIMES


def flow_time(model_sampling: Any, sigma: Tensor) -> Tensor:
    """Sigma (B,) to the time (B,) of a flow model with as much noise to signal, in [0, 1000].

    1000 c / (a + c) of x = a x0 + c noise: the noise level as latent heads know it, the same for every model
    on a latent space.
    """
    signal = signal_coefficient(model_sampling, sigma, ndim=1)
    noise = noise_coefficient(model_sampling, sigma, ndim=1)
    return TIMES * noise / (signal + noise)


def has_timesteps(model_sampling: Any) -> bool:
    """Whether the schedule has numbered timesteps; EDM's only looks as if it had."""
    return isinstance(model_sampling, comfy.model_sampling.ModelSamplingDiscrete) and not isinstance(
        model_sampling, comfy.model_sampling.ModelSamplingDiscreteEDM
    )


def signal_coefficient(model_sampling: Any, sigma: Tensor, ndim: int) -> Tensor:
    """a_t, the coefficient of x0 in x: (B, 1, ...) of `ndim` dimensions, for sigma (B,).

    Taken from the host's own noising, so it is right for every parametrisation: 1 for eps, v and EDM,
    1 - sigma for flow models.
    """
    zeros = torch.zeros(sigma.shape[0], *[1] * (ndim - 1), device=sigma.device)
    return model_sampling.noise_scaling(sigma, zeros, torch.ones_like(zeros))


def noise_coefficient(model_sampling: Any, sigma: Tensor, ndim: int) -> Tensor:
    """c_t, the coefficient of the noise in x, as signal_coefficient: sigma for eps, v, EDM and flow."""
    zeros = torch.zeros(sigma.shape[0], *[1] * (ndim - 1), device=sigma.device)
    return model_sampling.noise_scaling(sigma, torch.ones_like(zeros), zeros)


def v_coefficient(model_sampling: Any, sigma: Tensor, ndim: int) -> Tensor:
    """b^2 in v space: (B, 1, ...) of `ndim` dimensions, for sigma (B,).

    sigma^2 / (sigma^2 + sigma_data^2), which is 1 - abar; the time t of flow models. That is sigma, but for
    Cosmos-Predict2, whose x is divided by 1 - t, sigma = t / (1 - t).
    """
    sigma = sigma.view(-1, *[1] * (ndim - 1)).float()
    if isinstance(model_sampling, comfy.model_sampling.CONST):
        return sigma
    if isinstance(model_sampling, comfy.model_sampling.COSMOS_RFLOW):
        return sigma / (1 + sigma)
    return sigma**2 / (sigma**2 + model_sampling.sigma_data**2)


def noise_to_signal(model_sampling: Any, sigma: float) -> float:
    """The ratio c / a of x = a x0 + c noise: sigma for eps, v and EDM, sigma / (1 - sigma) for flow models.

    Infinite where x is noise alone.
    """
    at = torch.tensor([sigma])
    signal = signal_coefficient(model_sampling, at, ndim=1).item()
    noise = noise_coefficient(model_sampling, at, ndim=1).item()
    return noise / signal if signal else math.inf


def noise_share(model_sampling: Any, sigma: Tensor, ndim: int) -> Tensor:
    """b, the share of the noise in x: c / sqrt(a^2 s^2 + c^2) for x = a x0 + c noise, data of deviation s.

    (B, 1, ...) of `ndim` dimensions, for sigma (B,). a and c come from the host's own noising.
    """
    signal = signal_coefficient(model_sampling, sigma, ndim)
    noise = noise_coefficient(model_sampling, sigma, ndim)
    deviation = getattr(model_sampling, "sigma_data", 1.0)
    return noise / (noise**2 + (signal * deviation) ** 2).sqrt()
