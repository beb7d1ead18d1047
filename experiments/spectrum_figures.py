"""The figures of attention_spectrum.py: how much more there is inside a mask, and how certain that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from inner_guidance.guidance.attention_spectrum import Overlap

RESAMPLES = 1000
# Pictures whose patches are held at once.
BATCH = 10


class Excess(NamedTuple):
    """By how much the patches inside a mask exceed all, in powers of ten of their magnitude.

    The mean over the rings but ring 0, and the ring with least; certainty: the share of resamplings in which
    even that is above 0, which is the paper's claim.
    """

    mean: float
    least: float
    certainty: float

    @property
    def cell(self) -> str:
        """Both in percent, and how certain they are."""
        if self.mean != self.mean:
            return "no patch"
        return f"{100 * (10**self.mean - 1):+.0f} / {100 * (10**self.least - 1):+.0f} ({self.certainty:.0%})"


def overlap_cell(found: Overlap) -> str:
    """Intersection over union, and how far that is from chance."""
    if found.random_std == 0:
        return "no mask"
    more, deviations = found.iou / found.random - 1, (found.iou - found.random) / found.random_std
    return f"{found.iou:.2f} ({more:+.0%}, {deviations:+.0f} sd)"


def log_magnitudes(pictures: Tensor, size: int) -> Tensor:
    """Of every patch, on every ring but ring 0: (N, rows, columns, rings)."""
    from inner_guidance.guidance import attention_spectrum as spectrum

    return torch.cat(
        [
            spectrum.log_magnitudes(spectrum.patches(spectrum.luminance(batch), size))[..., 1:]
            for batch in pictures.split(BATCH)
        ]
    )


def inside(mask: Tensor, pictures: Tensor, size: int) -> Tensor:
    """The patches that lie in a mask of tokens (N, h, w): (N, rows, columns), bool."""
    from inner_guidance.guidance.attention_spectrum import within

    return within(mask, pictures.shape[1:3], size)


def excess(logs: Tensor, chosen: Tensor) -> Excess:
    """What the chosen patches (N, rows, columns) have more than all, and how certain that is."""
    pictures = len(logs)
    counts = torch.stack([torch.full((pictures,), chosen[0].numel()), chosen.sum(dim=(1, 2))]).float()
    totals = torch.stack([logs.sum(dim=(1, 2)), (logs * chosen[..., None]).sum(dim=(1, 2))])
    drawn = torch.randint(pictures, (RESAMPLES, pictures), generator=torch.Generator().manual_seed(0))
    often = torch.zeros(RESAMPLES, pictures).scatter_add_(1, drawn, torch.ones(drawn.shape))
    often = torch.cat([torch.ones(1, pictures), often])  # first, every picture once
    everywhere, inner = (often @ totals) / (often @ counts[..., None])
    more = inner - everywhere
    return Excess(
        float(more[0].mean()), float(more[0].min()), float((more[1:] > 0).all(dim=1).float().mean())
    )


def table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str | Excess]]) -> Iterator[str]:
    """A heading and a table; of spectra, also in how many of its cells the claim holds."""
    yield from (f"## {title}", "")
    yield f"| | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, cells in rows.items():
        yield f"| {name} | {' | '.join(c.cell if isinstance(c, Excess) else c for c in cells)} |"
    found = [cell for cells in rows.values() for cell in cells if isinstance(cell, Excess)]
    if found:
        holds, sure = sum(e.least > 0 for e in found), sum(e.certainty >= 0.975 for e in found)
        yield ""
        yield (
            f"More at every frequency: in {holds} of {len(found)} cells, in {sure} of them in at least 97.5 "
            "% of the resamplings."
        )
    yield ""
