"""What every training stage shares: a time budget, checkpoints, an average of the weights."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn


@dataclass
class Budget:
    """Training time, which outlives interruptions: `spent` is what earlier calls of the stage have used."""

    minutes: float
    spent: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Minutes of training so far, earlier calls included."""
        return self.spent + (time.monotonic() - self.started) / 60

    @property
    def fraction(self) -> float:
        """Share of the time that is used up, in [0, 1]."""
        return min(self.elapsed / self.minutes, 1.0)

    def rate(self, peak: float, step: int, warm_up: int = 200, floor: float = 0.02) -> float:
        """Learning rate: linear warm-up, then a cosine from `peak` to `floor * peak` at the end."""
        cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * self.fraction))
        return peak * cosine * min((step + 1) / warm_up, 1.0)


def write_checkpoint(path: Path, **state: object) -> None:
    """Writes a checkpoint so that an interruption leaves the previous one whole."""
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(path)


def read_checkpoint(path: Path) -> dict | None:
    """What `write_checkpoint` wrote, None where there is nothing yet."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


@torch.no_grad()
def update_average(average: dict[str, torch.Tensor], model: nn.Module, step: int, decay: float) -> None:
    """Exponential moving average of the weights; a young average forgets faster."""
    decay = min(decay, (1 + step) / (10 + step))
    weights = model.state_dict()
    torch._foreach_lerp_(list(average.values()), [weights[name] for name in average], 1 - decay)


def reset_weights(model: nn.Module) -> None:
    """Gives torch's default weights to the host's layers, whose own `reset_parameters` does nothing."""
    for layer in model.modules():
        for kind in (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm):
            if isinstance(layer, kind):
                kind.reset_parameters(layer)
