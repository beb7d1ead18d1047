"""What the runs of Self-Attention Guidance and Depth-Aware Guidance have in common."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..sampling.guiders import combines_itself
from ..sampling.placements import Conditions
from ..sampling.schedule import SigmaRange, denoise_mask_at, is_nth_step


class GuidedRun:
    """One guided sampling run: where in the schedule it is guided, and what it has warned of.

    node: its name in warnings. denoise_mask: of the sampler, None without one.
    """

    def __init__(
        self,
        node: str,
        guider: Any,
        denoise_mask: Tensor | None,
        start_percent: float,
        end_percent: float,
    ) -> None:
        self.node = node
        self.guider = guider
        self.denoise_mask = denoise_mask
        self.model_sampling = guider.model_patcher.get_model_object("model_sampling")
        self.within = SigmaRange.from_percent(self.model_sampling, start_percent, end_percent)
        self.warned: set[str] = set()

    @property
    def own_lists(self) -> dict[str, Conditions] | None:
        """The lists of conditions, by name, of a guider that combines predictions itself; None of others.

        Then the guidance is added to what the guider returns, once. With other guiders the first post-CFG
        function adds it, so that those of other nodes get a guided estimate.
        """
        return self.guider.conds if combines_itself(self.guider) else None

    def mask_at(self, timestep: Tensor, model_options: dict[str, Any]) -> Tensor | float:
        """The denoise mask at this timestep."""
        return denoise_mask_at(self.guider, self.denoise_mask, timestep, model_options)

    def is_nth_step(self, sigma: float, sample_sigmas: Tensor, n: int) -> bool:
        """Whether the step of sigma is the first that is guided, or the n-th, 2n-th, ... after it."""
        return is_nth_step(sigma, sample_sigmas, self.within, n)

    def warn(self, problem: str | None, sigma: float, images: Sequence[int] = ()) -> None:
        """Log why there is no guidance at this sigma; once in a run for each problem, None for none.

        images: those of the batch that have none, where others have.
        """
        if problem and problem not in self.warned:
            where = f" in image {', '.join(str(i + 1) for i in images)} of the batch" if images else ""
            logging.warning("%s has no effect%s at sigma %.3f: %s.", self.node, where, sigma, problem)
            self.warned.add(problem)


def finite_images(*tensors: Tensor) -> Tensor:
    """Whether all numbers of an image are finite, in each of the tensors (B, C, ...): (B, 1, 1, ...)."""
    finite = [t.isfinite().flatten(1).all(dim=1) for t in tensors]
    return torch.stack(finite).all(dim=0).view(-1, *[1] * (tensors[0].ndim - 1))
