"""Self-recurrence as a sampler (Universal Guidance, arXiv:2302.07121; FreeDoM, arXiv:2303.09833).

Early steps are taken several times: a step from sigma to sigma_next, then noise that leads back to sigma. So
the model gets evaluations in which it can make whole what guidance has changed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from comfy.k_diffusion.sampling import sample_dpmpp_2m
from comfy.samplers import KSAMPLER
from torch import Tensor

EARLY = 0.4
"""The part of the sampling in which steps are repeated."""


def recurrent(repeats: int) -> KSAMPLER:
    """A sampler: Euler steps, each taken `repeats` times, in the part EARLY; then dpmpp_2m."""
    return KSAMPLER(sample_recurrent, {"repeats": repeats})


def sample_recurrent(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Any,
    disable: bool | None,
    repeats: int,
) -> Tensor:
    """The image from x at sigmas[0], as k-diffusion's samplers."""
    end = model.inner_model.inner_model.model_sampling.percent_to_sigma(EARLY)
    early = int((sigmas > end).sum())
    generator = torch.Generator().manual_seed(extra_args["seed"] + 1)
    for sigma, following in pairwise(sigmas[: early + 1]):
        for again in range(repeats):
            denoised = model(x, sigma * x.new_ones(len(x)), **extra_args)
            x = denoised + following / sigma * (x - denoised)
            if again < repeats - 1:
                fresh = torch.randn(x.shape, generator=generator).to(x)
                x = x + (sigma**2 - following**2).sqrt() * fresh
    return sample_dpmpp_2m(model, x, sigmas[early:], extra_args, callback, disable)
