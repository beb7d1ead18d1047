"""The figures of spectrum_experiment.py: the excess of magnitude inside a mask, and its certainty."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..guidance import attention_spectrum as spectrum
from ..guidance.attention_spectrum import Overlap
from . import markdown

RESAMPLES = 1000
BATCH = 10
"""Pictures whose patches are in memory at once."""


class Excess(NamedTuple):
    """How much the magnitude of patches inside a mask exceeds that of all patches, as a power of ten."""

    mean: float
    """Mean over all rings except ring 0."""
    least: float
    """On the ring with the smallest excess."""
    certainty: float
    """Share of the resamplings in which `least` is above 0, which is the paper's claim."""

    @property
    def cell(self) -> str:
        """Mean and least in percent, and the certainty."""
        if self.mean != self.mean:
            return "no patch"
        return f"{100 * (10**self.mean - 1):+.0f} / {100 * (10**self.least - 1):+.0f} ({self.certainty:.0%})"


def overlap_cell(found: Overlap) -> str:
    """Intersection over union; how much that exceeds chance, in percent and in standard deviations."""
    if found.random_std == 0:
        return "no mask"
    more, deviations = found.iou / found.random - 1, (found.iou - found.random) / found.random_std
    return f"{found.iou:.2f} ({more:+.0%}, {deviations:+.0f} sd)"


def log_magnitudes(pictures: Tensor, size: int) -> Tensor:
    """Log magnitudes of every patch on all rings except ring 0: (N, rows, columns, rings)."""
    return torch.cat(
        [
            spectrum.log_magnitudes(spectrum.patches(spectrum.luminance(batch), size))[..., 1:]
            for batch in pictures.split(BATCH)
        ]
    )


def inside(mask: Tensor, pictures: Tensor, size: int) -> Tensor:
    """Which patches lie inside a mask of tokens (N, h, w): (N, rows, columns), bool."""
    return spectrum.within(mask, pictures.shape[1:3], size)


def excess(logs: Tensor, chosen: Tensor) -> Excess:
    """The excess of chosen patches (N, rows, columns), bool, over all; logs from `log_magnitudes`."""
    pictures = len(logs)
    counts = torch.stack([torch.full((pictures,), chosen[0].numel()), chosen.sum(dim=(1, 2))]).float()
    totals = torch.stack([logs.sum(dim=(1, 2)), (logs * chosen[..., None]).sum(dim=(1, 2))])
    drawn = torch.randint(pictures, (RESAMPLES, pictures), generator=torch.Generator().manual_seed(0))
    often = torch.zeros(RESAMPLES, pictures).scatter_add_(1, drawn, torch.ones(drawn.shape))
    often = torch.cat([torch.ones(1, pictures), often])  # row 0: every picture once
    everywhere, inner = (often @ totals) / (often @ counts[..., None])
    more = inner - everywhere
    return Excess(
        float(more[0].mean()), float(more[0].min()), float((more[1:] > 0).all(dim=1).float().mean())
    )


def table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str | Excess]]) -> Iterator[str]:
    """A heading and a table. With cells of spectra: also the number of cells in which the claim holds."""
    yield from (f"## {title}", "")
    yield from markdown.table(
        columns,
        {
            name: [cell.cell if isinstance(cell, Excess) else cell for cell in cells]
            for name, cells in rows.items()
        },
    )
    found = [cell for cells in rows.values() for cell in cells if isinstance(cell, Excess)]
    if found:
        holds, sure = sum(e.least > 0 for e in found), sum(e.certainty >= 0.975 for e in found)
        yield ""
        yield (
            f"More at every frequency: in {holds} of {len(found)} cells, in {sure} of them in at least 97.5 "
            "% of the resamplings."
        )
    yield ""
