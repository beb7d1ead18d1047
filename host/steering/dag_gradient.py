"""The gradient of Depth-Aware Guidance: the losses of the depth that it reads in a forward pass."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...guidance import depth_aware as dag
from .dag_losses import ROBUST, DepthAwareSettings, Networks, losses
from .gradient_pass import GradientReader
from .guided_run import DEPTH_AWARE


class DepthGradient(GradientReader):
    """seeded: draws the noise that the prior adds. After the pass, `depth` is the strong branch's."""

    def __init__(
        self,
        settings: DepthAwareSettings,
        networks: Networks,
        seeded: torch.Generator,
        loss_scale: float,
    ) -> None:
        taps, guiding_taps = (
            {name for branch in branches for name in networks.head.branch_taps[branch]}
            for branches in (settings.branches, settings.guiding_branches)
        )
        super().__init__(DEPTH_AWARE, taps, guiding_taps, loss_scale, settings.checkpointing)
        self.settings = settings
        self.networks = networks
        self.seeded = seeded
        self.depth: Tensor | None = None
        self.pull_size: Tensor | None = None

    def products(
        self, features: Mapping[str, Tensor], time: Tensor, size: Sequence[int]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Depth maps from the features, and the gradients of the losses with respect to them."""
        branches, guiding = self.settings.branches, self.settings.guiding_branches
        maps = self.networks.head.branches(features, time, size, branches)
        self.depth = maps[0].detach()
        asked = dag.pull(
            maps[0],
            maps[1] if len(maps) > 1 else None,
            list(losses(self.settings, self.networks, maps[0], time, self.seeded)),
            normalise=self.settings.mode == ROBUST,
        )
        self.pull_size = asked.size
        pairs = zip(branches, maps, asked.cotangents(self.loss_scale), strict=True)
        outputs, cotangents = zip(*((d, c) for branch, d, c in pairs if branch in guiding), strict=True)
        return outputs, cotangents

    def take(self, gradient: Tensor) -> None:
        """A direction of unit RMS per pull in the robust mode; the plain gradient in the paper's."""
        if self.pull_size is None:
            return
        size = self.pull_size.to(gradient).view(-1, *[1] * (gradient.ndim - 1))
        finite = self.finite(gradient, size)
        if not finite:
            return
        gradient, size = finite
        if self.settings.mode == ROBUST:
            self.gradient = dag.direction(gradient, size)
        else:
            self.gradient = gradient * (size / self.loss_scale)
