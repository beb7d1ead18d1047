"""The base of all steps of Depth-Aware Guidance: shift the estimate by the robust or the paper's rule."""

from typing import Any

import comfy.model_sampling
import torch
from torch import Tensor

from ...guidance import depth_aware as dag
from ..sampling.noise_levels import noise_share
from .dag_losses import ROBUST, DepthAwareSettings, Networks
from .shift_step import ShiftStep


class DepthAwareStep(ShiftStep):
    """The guidance of one evaluation by depth.

    seed: for the noises of the prior's loss. following: the next sigma of the schedule. share: the part of
    the shift that is added, 1 for most samplers. further: arguments of every ShiftStep.
    """

    def __init__(
        self,
        settings: DepthAwareSettings,
        networks: Networks,
        seed: int,
        following: float,
        share: float,
        **further: Any,
    ) -> None:
        super().__init__(**further)
        self.settings = settings
        self.networks = networks
        self.seed = seed
        self.following = following
        self.share = share
        self.depth: Tensor | None = None

    def seeded(self) -> torch.Generator:
        """The generator of the noises of the prior's loss: the same each time the step is repeated."""
        return torch.Generator().manual_seed(self.seed)

    def shift_of(self, gradient: Tensor, model: Any, sigma: Tensor, estimate: Tensor) -> Tensor:
        """The robust or the paper's shift."""
        if self.settings.mode == ROBUST:
            share = noise_share(model.model_sampling, sigma, estimate.ndim)
            return self.share * dag.robust_shift(gradient, estimate, share)
        flow = isinstance(model.model_sampling, comfy.model_sampling.CONST)
        return self.share * dag.paper_shift(gradient, float(sigma.max()), self.following, flow)
