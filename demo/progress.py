"""Shared by all training stages: a time budget, checkpoints, an average of the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass
class Budget:
    """The training time of a stage, in minutes. spent: minutes of earlier calls."""

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


class Training:
    """A model in training, with its averaged weights, steps and minutes.

    It resumes the checkpoint of its stage. From a checkpoint of another stage or of published weights, it
    takes the weights and starts at step 0.
    """

    def __init__(
        self,
        stage: str,
        model: nn.Module,
        optimisers: Sequence[torch.optim.Optimizer],
        checkpoint: Path,
        minutes: float,
    ) -> None:
        self.stage, self.model, self.optimisers, self.checkpoint = stage, model, optimisers, checkpoint
        self.average = {name: weight.clone() for name, weight in model.state_dict().items()}
        self.step, self.saved = 0, 0.0
        if state := read_checkpoint(checkpoint):
            model.load_state_dict(state["model"])
            for name, weight in self.average.items():
                weight.copy_(state["average"][name])
            if state.get("stage") == stage:
                for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
                    optimiser.load_state_dict(saved)
                self.step, self.saved = state["step"], state["spent"]
        self.budget = Budget(minutes, self.saved)

    def learn(self, loss: Tensor, rate: float, decay: float) -> None:
        """One step at `rate` times the groups' `scale`, then the average of the weights."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group.get("scale", 1.0)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        update_average(self.average, self.model, self.step, decay)
        self.step += 1

    def save_every(self, minutes: float) -> bool:
        """Writes a checkpoint if the last is older, or the time is used up; returns whether it did."""
        due = self.budget.elapsed > self.saved + minutes or self.budget.fraction == 1
        if due:
            self.saved = self.budget.elapsed
            write_checkpoint(
                self.checkpoint,
                stage=self.stage,
                model=self.model.state_dict(),
                average=self.average,
                optimisers=[optimiser.state_dict() for optimiser in self.optimisers],
                step=self.step,
                spent=self.saved,
            )
        return due


def write_checkpoint(path: Path, **state: object) -> None:
    """Writes a checkpoint. An interruption leaves the previous one intact."""
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(path)


def read_checkpoint(path: Path) -> dict | None:
    """The checkpoint that `write_checkpoint` wrote; None without a file."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def read_average(path: Path) -> dict[str, Tensor]:
    """The averaged weights in a checkpoint. Raises SystemExit when there is none."""
    state = read_checkpoint(path)
    if state is None:
        raise SystemExit(f"There is no checkpoint {path}: run the stage `{path.stem}` first.")
    return state["average"]


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, step: int, decay: float) -> None:
    """Exponential moving average of the weights. The first steps use a smaller decay."""
    decay = min(decay, (1 + step) / (10 + step))
    weights = model.state_dict()
    torch._foreach_lerp_(list(average.values()), [weights[name] for name in average], 1 - decay)
