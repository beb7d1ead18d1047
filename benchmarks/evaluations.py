"""Seconds and bytes of each evaluation of a model by a sampler.

An evaluation includes everything that a node adds to it. The host's preparation of a run and the
sampler's own arithmetic are not measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from .models import prompt

CFG = 7.0
T = TypeVar("T")
Measure = Callable[[torch.device, Callable[[], Tensor]], tuple[Tensor, float]]
"""Calls a function on a device; returns its result and its cost."""


class MeasuredEuler(comfy.samplers.Sampler):
    """Euler's method. Measures each of its evaluations."""

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self.took: list[float] = []

    def sample(  # type: ignore[override]  # the host's base class declares no arguments
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The host's Sampler.sample."""
        x = noise * sigmas[0]
        for sigma, following in pairwise(sigmas):
            evaluation = partial(model_wrap, x, sigma.expand(len(x)), **extra_args)
            x0, took = self.measure(x.device, evaluation)
            self.took.append(took)
            x = x0 + (x - x0) * (following / sigma)
        return x


def evaluations(model: ModelPatcher, steps: int, measure: Measure, size: tuple[int, ...]) -> list[float]:
    """The cost of each evaluation of a sampling run of latents (B, C, h, w), classifier-free guidance."""
    sampler = MeasuredEuler(measure)
    latent = torch.zeros(size)
    comfy.sample.sample_custom(
        model,
        comfy.sample.prepare_noise(latent, seed=0),
        CFG,
        sampler,
        comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps),
        prompt(model, 0),
        prompt(model, 1),
        latent,
        disable_pbar=True,
        seed=0,
    )
    return sampler.took


def seconds(device: torch.device, call: Callable[[], T]) -> tuple[T, float]:
    """The result of a call, and the seconds that it takes."""
    wait_for(device)
    started = time.perf_counter()
    result = call()
    wait_for(device)
    return result, time.perf_counter() - started


def peak_bytes(device: torch.device, call: Callable[[], T]) -> tuple[T, float]:
    """The result of a call, and the peak of PyTorch's allocations above their level before it, in bytes."""
    if device.type != "cpu":
        wait_for(device)
        torch.accelerator.reset_peak_memory_stats(device)
        before = torch.accelerator.memory_allocated(device)
        result = call()
        wait_for(device)
        return result, torch.accelerator.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = call()
    changes = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = most = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        total += change.nbytes()
        most = max(most, total)
    return result, most


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
