"""The levels of a head's losses on real images: measured after a training, or for a head without them."""

import copy
from collections.abc import Callable, Mapping

import comfy.model_management
import torch
from torch import Tensor, nn

from ...depth_head.architectures import STRONG, WEAK
from ...depth_head.calibration import Calibration, LossLevels
from ...depth_head.depth_maps import resize_antialiased
from ...depth_head.prior import TIMESTEPS, DepthPrior, schedule, to_prior
from ...depth_head.training import CHECKED_TIMES
from ...guidance import depth_aware as dag

# The number of maps that a head carries, for the levels of priors, and the longer side of the largest: 34 MB.
# Priors see 128 px at most. A latent of pixels may have 2048; a file of such maps is too large to load.
CARRIED, LARGEST = 16, 512


@torch.no_grad()
def calibration_of(readings: Mapping[str, Tensor]) -> Calibration:
    """From the depth of real images: branch -> (n, len(CHECKED_TIMES), h, w); n is 2 or more."""
    strong, weak = readings[STRONG], readings.get(WEAK)
    consistency = None
    if weak is not None:
        losses = [
            dag.consistency_loss(*(t[:, i : i + 1] for t in (strong, weak)))
            for i in range(len(CHECKED_TIMES))
        ]
        consistency = LossLevels.of(CHECKED_TIMES, torch.stack(losses, dim=1))
    return Calibration(CHECKED_TIMES, shrunk(strong[:CARRIED]).clamp(0, 1).half(), consistency)


def shrunk(maps: Tensor) -> Tensor:
    """Maps (N, C, h, w), made smaller where a side is longer than LARGEST."""
    sides = maps.shape[-2:]
    if max(sides) <= LARGEST:
        return maps
    return resize_antialiased(maps, *(max(1, round(side * LARGEST / max(sides))) for side in sides))


def prior_levels(calibration: Calibration, prior: DepthPrior) -> tuple[LossLevels, LossLevels]:
    """The levels of the robust prior's loss at both ends of dag.PRIOR_LEVELS, the lower one first."""
    device = comfy.model_management.get_torch_device()
    unet = copy.deepcopy(prior.unet).to(device)
    generator = torch.Generator().manual_seed(0)

    def losses(maps: Tensor, tau: int) -> Tensor:
        """(n,) of maps (n, h, w), each with noises of its own."""
        depth = to_prior(maps[:, None].float(), prior.size)
        etas = torch.randn(dag.PRIOR_NOISES, *depth.shape, generator=generator)
        return dag.denoised_prior_loss(
            depth.to(device), etas.to(device), float(schedule()[tau]), eps_phi(unet, tau)
        ).cpu()

    low, high = (
        LossLevels.of(
            calibration.times, torch.stack([losses(maps, tau) for maps in calibration.depth.unbind(1)], dim=1)
        )
        for tau in (round(share * TIMESTEPS) for share in dag.PRIOR_LEVELS)
    )
    return low, high


def eps_phi(unet: nn.Module, tau: int) -> Callable[[Tensor], Tensor]:
    """The noise that a prior predicts in maps at its timestep tau."""
    return lambda noised: unet(noised, noised.new_full((len(noised),), float(tau)))
