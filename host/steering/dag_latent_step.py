"""One step of Depth-Aware Guidance by a head that reads the clean latent.

As in FlowChef (arXiv:2412.00100), the gradient of the losses is taken with respect to the clean estimate and
added there. The model is evaluated as without guidance: its pass is neither differentiated nor read.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...depth_head.architectures.latent import ESTIMATE
from ...depth_head.training import LAST_TIME
from ...guidance import depth_aware as dag
from ..sampling.noise_levels import flow_time
from .dag_losses import losses
from .dag_step import DepthAwareStep
from .guided_run import finite_or_zero
from .shift_step import NOT_FINITE, NOT_WHOLE

NO_IMAGE = "the head reads images, and this latent is a video of several frames, or one with sound"


class LatentStep(DepthAwareStep):
    """The guidance by a latent head: it reads the result of CFG."""

    def estimate(self, args: Mapping[str, Any]) -> Tensor | None:
        """The result of CFG, without other guidance of the pack and before functions of other nodes."""
        if self.own_lists is not None:
            return None
        if args["input"] is not self.x and not torch.equal(args["input"], self.x):
            self.problem = NOT_WHOLE
            return None
        return self.added.without(args["denoised"])

    def estimate_of_guider(self, denoised: Tensor) -> Tensor | None:
        """The guider's result, in the same way."""
        return self.added.without(denoised)

    def find_shift(self, model: Any, sigma: Tensor, estimate: Tensor | None) -> None:
        """The shift of an estimate (B, C, h, w), or (B, C, 1, h, w), from the losses of its depth."""
        if estimate is not None and self.fresh and self.gradient is None:
            self.take(estimate, flow_time(model.model_sampling, sigma))
        super().find_shift(model, sigma, estimate)

    def take(self, estimate: Tensor, time: Tensor) -> None:
        """The direction in which the depth losses of an estimate grow."""
        # The host packs a video and its sound into (B, 1, N).
        if estimate.ndim < 4 or estimate[0, 0].numel() != estimate.shape[-2] * estimate.shape[-1]:
            self.problem = NO_IMAGE
            return
        x0 = estimate.reshape(*estimate.shape[:2], *estimate.shape[-2:])
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x0.detach().to(torch.float32, copy=True).requires_grad_()
            at = time.clone().clamp_max(LAST_TIME)
            depth = self.networks.head({ESTIMATE: leaf}, at, leaf.shape[-2:])
            acting = list(losses(self.settings, self.networks, depth, at, self.seeded()))
            asked = dag.pull(depth, None, acting, normalise=True)
            (gradient,) = torch.autograd.grad([depth], [leaf], asked.cotangents(1.0))
        self.depth = depth.detach()
        (gradient, size), unguided = finite_or_zero(gradient, asked.size)
        if unguided:
            self.problem = NOT_FINITE
        if len(unguided) < len(gradient):
            self.unguided = unguided
            self.gradient = dag.direction(gradient, size).view_as(estimate)
