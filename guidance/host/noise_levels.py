"""Time, the noise level as depth heads know it: continuous, in [0, 1000).

Where the model's schedule has timesteps, time is the timestep. For others it is 1000 times the share of noise
in the latent: sigma for flow models, sigma / (sigma + sigma_data) for the rest.
"""

from typing import Any

import comfy.model_sampling
from torch import Tensor

TIMES = 1000


def sigma_at(model_sampling: Any, time: Tensor) -> Tensor:
    """Time (B,) to sigma (B,)."""
    if has_timesteps(model_sampling):
        return model_sampling.sigma(time)
    share = time / TIMES
    if isinstance(model_sampling, comfy.model_sampling.CONST):
        return share
    return model_sampling.sigma_data * share / (1 - share)


def time_at(model_sampling: Any, sigma: Tensor) -> Tensor:
    """Sigma (B,) to time (B,); to the nearest timestep where there are such."""
    if has_timesteps(model_sampling):
        return model_sampling.timestep(sigma).float()
    if isinstance(model_sampling, comfy.model_sampling.CONST):
        return sigma * TIMES
    return sigma / (sigma + model_sampling.sigma_data) * TIMES


def has_timesteps(model_sampling: Any) -> bool:
    """Whether the schedule is one of numbered steps; EDM's only looks it."""
    return isinstance(model_sampling, comfy.model_sampling.ModelSamplingDiscrete) and not isinstance(
        model_sampling, comfy.model_sampling.ModelSamplingDiscreteEDM
    )
