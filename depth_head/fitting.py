"""The loop in which heads learn from the features of a frozen model: steps, checks, the best state."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor, nn

CHECKS = 10
LAST_RATE = 0.02

# Indices of images (B,), time (B,), a seed for the noise of each (B,) -> features by name.
Features = Callable[[Tensor, Tensor, Tensor], Mapping[str, Tensor]]
# What an except clause takes; () is nothing.
Interruption = type[BaseException] | tuple[type[BaseException], ...]


@dataclass(frozen=True)
class Fit:
    """losses: of every step. best_step: the number of steps before the kept state. interrupted: at a step."""

    losses: list[float]
    best_step: int
    interrupted: bool


def fit(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    steps: int,
    loss_of_step: Callable[[], Tensor],
    score: Callable[[], float],
    on_step: Callable[[int, list[float]], None],
    interruption: Interruption,
    parts: int = 1,
) -> Fit:
    """Train a network in place; it is left in evaluation mode, without gradients, in its best state.

    The learning rate falls from the optimiser's own (`decay`). score: the lower, the better; asked CHECKS
    times. on_step is called with the number of steps done and the losses. interruption: an exception that
    ends the training and keeps the best state, once a step is done; before that it is raised. parts: the loss
    is the sum of so many, and their mean is recorded.
    """
    rates = [group["lr"] for group in optimiser.param_groups]
    check_every = max(1, steps // CHECKS)
    losses: list[float] = []
    best: tuple[float, int, dict[str, Tensor]] | None = None
    interrupted = False
    network.train().requires_grad_(True)
    try:
        while len(losses) < steps:
            on_step(len(losses), losses)
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * decay(len(losses) / steps)
            loss = loss_of_step()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item() / parts)
            if len(losses) % check_every == 0 or len(losses) == steps:
                reached = score()
                if best is None or reached < best[0]:
                    best = reached, len(losses), copy.deepcopy(network.state_dict())
                network.train()
    except interruption:
        if not losses:
            raise
        interrupted = True
    best_step = len(losses)
    if best is not None:
        _, best_step, state = best
        network.load_state_dict(state)
    network.requires_grad_(False).eval()
    return Fit(losses, best_step, interrupted)


def decay(done: float) -> float:
    """The learning rate's factor when a share of the steps is done: a cosine from 1 to LAST_RATE."""
    return LAST_RATE + (1 - LAST_RATE) * (1 + cos(pi * done)) / 2


def stratified(count: int, generator: torch.Generator) -> Tensor:
    """`count` numbers in [0, 1), one in each of as many equal parts, in random order."""
    numbers = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return numbers.clamp_max(1 - torch.finfo(numbers.dtype).eps)


def draw_times(count: int, last: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Times (count,) below `last`, stratified, so that a batch has early and late ones; and noise seeds."""
    times = stratified(count, generator) * last
    return times, torch.randint(2**62, (count,), generator=generator)


def read(features: Features, rows: Tensor, time: Tensor, seeds: Tensor) -> dict[str, Tensor]:
    """Features of images, as tensors that autograd takes."""
    with torch.inference_mode():
        found = features(rows, time, seeds)
    return {name: feature.clone() for name, feature in found.items()}
