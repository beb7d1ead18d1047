"""Figures of rows of pictures, and how certain their difference is: a bootstrap over the seeds.

All rows draw the same seeds. A resample takes the same seeds from each row, so what a seed does to every row
cancels out of a difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

RESAMPLES = 300
LEVEL = 0.95
"""Share of the resampled differences inside an interval."""


class Bootstrapped(NamedTuple):
    """A figure of a row, and the same figure of each resample, (R,)."""

    value: float
    resampled: Tensor


class Change(NamedTuple):
    """A figure, its difference from the baseline's, and the interval of that difference."""

    value: float
    change: float
    low: float
    high: float

    @property
    def is_certain(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0


def resamples(count: int, times: int = RESAMPLES) -> Tensor:
    """Numbers of the pictures in each resample, (times, count), the same ones at every call."""
    return torch.randint(count, (times, count), generator=torch.Generator().manual_seed(0))


def bootstrap(figure: Callable[[Tensor], float], values: Tensor, drawn: Tensor) -> Bootstrapped:
    """A figure of values (N, ...), one for each picture; drawn: from `resamples(N)`."""
    return Bootstrapped(figure(values), torch.tensor([figure(values[rows]) for rows in drawn]))


def change(row: Bootstrapped, baseline: Bootstrapped) -> Change:
    """The difference of two rows that were resampled alike, with its percentile interval."""
    difference = (row.resampled - baseline.resampled).double()
    outside = (1 - LEVEL) / 2
    low, high = difference.quantile(torch.tensor([outside, 1 - outside], dtype=torch.float64)).tolist()
    return Change(row.value, row.value - baseline.value, low, high)


def mean(values: Tensor) -> float:
    """The mean of what is not nan."""
    return values.double().nanmean().item()


def cell(row: Bootstrapped | None, baseline: Bootstrapped | None) -> str:
    """A figure, and its change from the baseline's unless that is None."""
    if row is None:
        return ""
    if baseline is None:
        return format(row.value, digits(row.value))
    return cell_of(change(row, baseline))


def cell_of(found: Change) -> str:
    """A changed figure as the tables show it."""
    form = digits(found.value)
    text = f"{found.value:{form}} ({found.change:+{form}}; {found.low:+{form}} to {found.high:+{form}})"
    return f"**{text}**" if found.is_certain else text


def digits(value: float) -> str:
    """The format of a figure."""
    return ".2f" if abs(value) >= 1 else ".3f" if abs(value) >= 0.1 else ".4f"
