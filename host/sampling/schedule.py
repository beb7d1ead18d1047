"""Where in a sampling run an evaluation is: its sigma, step and time, and how image and noise mix there.

Time is the noise level as heads know it: continuous, in [0, 1000). Where the model's schedule has timesteps,
time is the timestep. For others it is 1000 times the share of noise in the latent: sigma for flow models,
sigma / (sigma + sigma_data) for the rest.
"""

import math
from dataclasses import dataclass
from typing import Any

import comfy.model_sampling
import torch
from torch import Tensor

TIMES = 1000
# Two sigmas that differ by less, as a share, are one.
TOLERANCE = 1e-4
PERCENT_BITS = 32


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
    zeros = torch.zeros_like(sigma)
    signal = model_sampling.noise_scaling(sigma, zeros, zeros + 1)
    noise = model_sampling.noise_scaling(sigma, zeros + 1, zeros)
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

    sigma^2 / (sigma^2 + sigma_data^2), which is 1 - abar; sigma for flow models.
    """
    sigma = sigma.view(-1, *[1] * (ndim - 1)).float()
    if isinstance(model_sampling, comfy.model_sampling.CONST):
        return sigma
    return sigma**2 / (sigma**2 + model_sampling.sigma_data**2)


def noise_to_signal(model_sampling: Any, sigma: float) -> float:
    """The ratio c / a of x = a x0 + c noise: sigma for eps, v and EDM, sigma / (1 - sigma) for flow models.

    Infinite where x is noise alone.
    """
    at = torch.tensor([sigma])
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    signal = float(model_sampling.noise_scaling(at, zero, one))
    noise = float(model_sampling.noise_scaling(at, one, zero))
    return noise / signal if signal else math.inf


def noise_share(model_sampling: Any, sigma: Tensor, ndim: int) -> Tensor:
    """b, the share of the noise in x: c / sqrt(a^2 s^2 + c^2) for x = a x0 + c noise, data of deviation s.

    (B, 1, ...) of `ndim` dimensions, for sigma (B,). a and c come from the host's own noising.
    """
    zeros = torch.zeros(sigma.shape[0], *[1] * (ndim - 1), device=sigma.device)
    signal = model_sampling.noise_scaling(sigma, zeros, torch.ones_like(zeros))
    noise = model_sampling.noise_scaling(sigma, torch.ones_like(zeros), zeros)
    deviation = getattr(model_sampling, "sigma_data", 1.0)
    return noise / (noise**2 + (signal * deviation) ** 2).sqrt()


def denoise_mask_at(
    guider: Any,
    denoise_mask: Tensor | None,
    timestep: Tensor,
    model_options: dict[str, Any],
    sample_sigmas: Tensor,
) -> Tensor | float:
    """1 where the sampler keeps what the model predicts, 0 where it pastes the given latent back."""
    if denoise_mask is None:
        return 1.0
    of_sigma = model_options.get("denoise_mask_function")
    if of_sigma is None:
        return denoise_mask
    return of_sigma(timestep, denoise_mask, extra_options={"model": guider, "sigmas": sample_sigmas})


@dataclass(frozen=True)
class SigmaRange:
    """The part of the schedule between two percentages of it, both ends included: start >= sigma >= end."""

    start: float
    end: float

    @classmethod
    def from_percent(
        cls, model_sampling: Any, start_percent: float, end_percent: float, counted_from: float = math.inf
    ) -> "SigmaRange":
        """Percentages from 0 (the first step) to 1 (the last).

        counted_from: the sigma of 0 percent, infinite for that of the whole schedule. At 0 the range has no
        upper end: a schedule may begin above the model's largest sigma. Unless start_percent is below
        end_percent, the range is empty, also where a step is exactly at both.
        """
        if start_percent >= end_percent:
            return cls(0.0, math.inf)
        skipped = percent_at(model_sampling, counted_from)
        start, end = (
            float(model_sampling.percent_to_sigma(percent + skipped * (1 - percent)))
            for percent in (start_percent, end_percent)
        )
        if start_percent <= 0:
            start = math.inf
        if end_percent > 0:
            end = min(end, counted_from)  # the lowest sigmas are all near 100 percent
        return cls(start, end)

    def __contains__(self, sigma: float) -> bool:
        return self.end <= sigma <= self.start


def percent_at(model_sampling: Any, sigma: float) -> float:
    """The inverse of the host's percent_to_sigma: 0 at the largest sigma and above it."""
    low, high = 0.0, 1.0
    if sigma >= float(model_sampling.sigma_max) * (1 - TOLERANCE):
        return low
    for _ in range(PERCENT_BITS):
        middle = (low + high) / 2
        if model_sampling.percent_to_sigma(middle) >= sigma:
            low = middle
        else:
            high = middle
    return low


def counted_from(model_sampling: Any, noise: Tensor, latent_image: Tensor, sigmas: Tensor) -> float:
    """The sigma at which a run is at 0 percent: its first one in image to image, else infinite.

    Percentages count in what is sampled, so image to image has no part of them before its first step. A run
    from an empty latent counts in the whole schedule, and so do those that are parts of another run.
    """
    if rises(sigmas) or continues(model_sampling, noise, sigmas) or not latent_image.any():
        return math.inf
    return float(sigmas[0])


def continues(model_sampling: Any, noise: Tensor, sigmas: Tensor) -> bool:
    """Whether a run goes on with a noisy latent, as the second of two KSamplerAdvanced does.

    It adds no noise, and begins below the largest sigma.
    """
    return not noise.any() and float(sigmas[0]) < float(model_sampling.sigma_max) * (1 - TOLERANCE)


def is_part(model_sampling: Any, noise: Tensor, sigmas: Tensor) -> bool:
    """Whether other runs come before or after a run, until the image is finished."""
    return float(sigmas[-1]) > 0 or continues(model_sampling, noise, sigmas)


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


def is_nth_step(sigma: float, sample_sigmas: Tensor, within: SigmaRange, n: int) -> bool:
    """Whether the step of sigma is the first of those in the range, or the n-th, 2n-th, ... after it."""
    first = next((i for i, s in enumerate(sample_sigmas.tolist()) if s in within), 0)
    return (step_of(sigma, sample_sigmas) - first) % n == 0
