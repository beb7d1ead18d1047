"""The steps of a sampling run: which one an evaluation belongs to, and the sigma after it."""

import math
from typing import Any

import torch
from torch import Tensor

# Two sigmas that differ by less, as a share, are one.
TOLERANCE = 1e-4


def first_sigmas(sampler: Any, sample_sigmas: Tensor) -> Tensor:
    """The sigmas (N,) at which the steps of a sampler begin to evaluate, on the CPU.

    Those of the schedule. With s_churn, sigma_hat = (1 + gamma) sigma, because each step adds noise first
    (EDM, arXiv:2206.00364, algorithm 2).
    """
    sigmas = sample_sigmas.cpu()
    options = getattr(sampler, "extra_options", {})
    gamma = min(options.get("s_churn", 0.0) / max(len(sigmas) - 1, 1), 2**0.5 - 1)
    churned = (sigmas >= options.get("s_tmin", 0.0)) & (sigmas <= options.get("s_tmax", math.inf))
    return torch.where(churned, sigmas * (gamma + 1), sigmas)


def sigma_of(timestep: Tensor, sample_sigmas: Tensor, first: Tensor) -> float:
    """The sigma of an evaluation, from timestep (B,): where a step begins, that of the schedule.

    first (N,): first_sigmas. A sampler that computes in half precision rounds its sigmas, by more than
    TOLERANCE.
    """
    sigma, schedule = timestep.max().cpu(), sample_sigmas.cpu()
    for evaluated in (first, schedule):
        of_step = schedule[evaluated.to(sigma.dtype) == sigma].tolist()
        if of_step:
            return of_step[-1]
    return float(sigma)


def step_of(sigma: float, sample_sigmas: Tensor) -> int:
    """The step of the schedule that an evaluation at sigma belongs to, from 0.

    Samplers of second order evaluate between two sigmas of the schedule; that belongs to the step that starts
    at the earlier one. A sigma before the first is step 0. Flipped schedules (unsampling) rise. Of a sigma
    that occurs twice, as where a schedule restarts, it is the last.
    """
    at = steps_at(sigma, sample_sigmas)
    if at:
        return at[-1]
    reached = sample_sigmas <= sigma if rises(sample_sigmas) else sample_sigmas >= sigma
    return max(int(reached.sum()) - 1, 0)


def steps_at(sigma: float, sample_sigmas: Tensor) -> list[int]:
    """The numbers of the steps of the schedule that start at sigma."""
    return [i for i, s in enumerate(sample_sigmas.tolist()) if abs(s - sigma) <= TOLERANCE * sigma]


def next_sigma(sigma: float, sample_sigmas: Tensor) -> float:
    """The sigma of the schedule after an evaluation at sigma, which may be between two; 0 at the end."""
    later = sample_sigmas[step_of(sigma, sample_sigmas) :].tolist()
    if rises(sample_sigmas):
        return next((s for s in later if s > sigma * (1 + TOLERANCE)), 0.0)
    return next((s for s in later if s < sigma * (1 - TOLERANCE)), 0.0)


def rises(sample_sigmas: Tensor) -> bool:
    """Whether a schedule adds noise, as after FlipSigmas."""
    return bool(sample_sigmas[-1] > sample_sigmas[0])
