"""Percentages of a sampling run as sigmas, and which part of the whole schedule a run is."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .schedule import TOLERANCE, rises, step_of

PERCENT_BITS = 32


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


def is_due(sigma: float, sample_sigmas: Tensor, within: SigmaRange, n: int, last: float) -> bool:
    """Whether the step of sigma is the first of those in the range, or the n-th, 2n-th, ... after it.

    Or the first that is evaluated after one of these was not: LazyCache skips whole steps. last: the sigma
    for which this was true before.
    """
    first = next((i for i, s in enumerate(sample_sigmas.tolist()) if s in within), 0)
    number, before = (step_of(at, sample_sigmas) - first for at in (sigma, last))
    return number % n == 0 or number // n > before // n
