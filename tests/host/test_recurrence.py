"""experiments/recurrence.py: repeated Euler steps, then dpmpp_2m, against float64 without the host."""

import math
from types import SimpleNamespace

import pytest
import torch

from inner_guidance.experiments.recurrence import EARLY, recurrent

SIGMAS = [9.0, 5.0, 3.0, 1.5, 0.6, 0.2, 0.0]
EARLY_END = 2.0
"""Sigma at 40 % of the sampling: the first three steps are early."""
SEED = 7


class Denoiser:
    """D(x, sigma) = (x + sigma^2 m) / (1 + sigma^2): exact for pixels of mean m and variance 1."""

    def __init__(self):
        self.asked = []
        sampling = SimpleNamespace(percent_to_sigma={EARLY: EARLY_END}.__getitem__)
        self.inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=sampling))

    def __call__(self, x, sigma, **_):
        self.asked.append(sigma[0].item())
        return denoised(x, sigma.view(-1, 1, 1, 1))


def denoised(x, sigma):
    return (x + 0.5 * sigma**2) / (1 + sigma**2)


def start():
    return 9 * torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def by_hand(repeats):
    """Algorithm 2 of Universal Guidance with Euler steps, then DPM-Solver++(2M) as in its paper."""
    x, noise = start(), torch.Generator().manual_seed(SEED + 1)
    for sigma, lower in ((9.0, 5.0), (5.0, 3.0), (3.0, 1.5)):
        for again in range(repeats):
            slope = (x - denoised(x, sigma)) / sigma
            x = x + (lower - sigma) * slope
            if again + 1 < repeats:
                x = x + math.sqrt(sigma**2 - lower**2) * torch.randn(2, 4, 3, 3, generator=noise).double()
    last, last_step = None, None
    for sigma, lower in ((1.5, 0.6), (0.6, 0.2), (0.2, 0.0)):
        found = denoised(x, sigma)
        step = math.log(sigma / lower) if lower else math.inf
        use = found
        if last is not None and lower:
            use = found + (found - last) * step / (2 * last_step)
        x = lower / sigma * x + (1 - math.exp(-step)) * use
        last, last_step = found, step
    return x


def sampled(repeats, model):
    sampler = recurrent(repeats)
    return sampler.sampler_function(
        model,
        start(),
        torch.tensor(SIGMAS, dtype=torch.float64),
        extra_args={"seed": SEED},
        callback=None,
        disable=True,
        **sampler.extra_options,
    )


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_early_steps_are_repeated_with_fresh_noise(repeats):
    found = sampled(repeats, Denoiser())

    assert torch.allclose(found, by_hand(repeats), rtol=0, atol=1e-6)
    assert repeats == 1 or (found - by_hand(1)).abs().max() > 0.1


def test_a_repeated_step_evaluates_the_same_sigma():
    model = Denoiser()

    sampled(2, model)

    assert model.asked == [9.0, 9.0, 5.0, 5.0, 3.0, 3.0, 1.5, 0.6, 0.2]
