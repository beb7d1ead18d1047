"""Time and memory of a sampling step for each row of the benchmark.

The rows take turns. A ratio of two rows is the median over the ratios of consecutive measurements, so a
machine that slows down does not favour a row.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from comfy.model_patcher import ModelPatcher
from tqdm import tqdm

from .evaluations import evaluations, peak_bytes, seconds


class Row(NamedTuple):
    """A model with a node applied. A measurement is the mean over this many steps."""

    title: str
    model: ModelPatcher
    steps: int = 1


@dataclass
class Cost:
    """peak: bytes of a step at its peak, without the weights; seconds: of a step, one value per repeat."""

    peak: float
    seconds: list[float] = field(default_factory=list)


class Steps:
    """Measures the rows, on latents of this size. weights: bytes of the model's weights, which all share."""

    def __init__(
        self, rows: Mapping[str, Row], weights: float, repeats: int, latent: tuple[int, ...]
    ) -> None:
        self.rows, self.weights = rows, weights
        with tqdm(total=len(rows) * (repeats + 1), desc="measuring", unit="row") as bar:

            def measured(row: Row, measure: Callable) -> list[float]:
                bar.set_postfix_str(row.title)
                took = evaluations(row.model, row.steps, measure, latent)
                bar.update()
                return took

            # The memory pass also warms up.
            self.costs = {name: Cost(max(measured(row, peak_bytes))) for name, row in rows.items()}
            for _ in range(repeats):
                for name, row in rows.items():
                    self.costs[name].seconds.append(statistics.mean(measured(row, seconds)))

    def time(self, name: str, other: str) -> float:
        """Time of a step of one row divided by that of another."""
        pairs = zip(self.costs[name].seconds, self.costs[other].seconds, strict=True)
        return statistics.median(a / b for a, b in pairs)

    def memory(self, name: str, other: str) -> float:
        """Peak memory of a step, weights included, divided by that of another row."""
        return (self.weights + self.costs[name].peak) / (self.weights + self.costs[other].peak)
