"""Guidance by depth: the settings of the node, and the losses of the depth maps."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...depth_head.architectures import STRONG, WEAK, DepthNetwork
from ...depth_head.calibration import LossLevels
from ...depth_head.depth_maps import centre_crop, resize_antialiased
from ...depth_head.prior import TIMESTEPS, DepthPrior, schedule, to_prior
from ...guidance import depth_aware as dag
from ...guidance.hinge import Level
from ..depth.calibration import eps_phi
from ..depth.heads import HostedDepthHead

MODES = ROBUST, PAPER = ("robust", "paper")


@dataclass(frozen=True)
class DepthAwareSettings:
    """The settings of the node.

    Scales: strength of the consistency (DCG), of the prior (DPG) and of the target; target (N, 1, h, w) in
    [0, 1], near = 1, target_mask (N, 1, h, w). A loss acts if its scale is not 0 and its input is there. mode
    of MODES. The gradient is taken at every n-th step between the percentages, and is reused in between.
    In the robust mode, consistency and prior begin at self_start_percent if that is later than start_percent,
    and the target ends at target_end_percent if that is earlier than end_percent. preview_node: the node that
    shows the depth while a sampler runs; None: no preview.

    target_blur: standard deviation of the blur through which depth and target are compared, a share of their
    shorter side: at 0 percent in what the node attaches, in the step at hand in what the losses get.

    prior_levels: of the prior's loss on real images, at both ends of dag.PRIOR_LEVELS. Those of the
    consistency are the head's. Without levels, and in the paper's mode, the losses are not calibrated.
    """

    head: HostedDepthHead
    prior: DepthPrior | None
    target: Tensor | None
    target_mask: Tensor | None
    consistency_scale: float
    prior_scale: float
    target_scale: float
    mode: str
    start_percent: float
    end_percent: float
    self_start_percent: float
    target_end_percent: float
    target_blur: float
    every_n_steps: int
    checkpointing: bool
    preview_node: str | None
    prior_levels: tuple[LossLevels, LossLevels] | None = None

    @property
    def scales(self) -> tuple[float, float, float]:
        """Strength of consistency, prior and target."""
        return self.consistency_scale, self.prior_scale, self.target_scale

    @property
    def uses_prior(self) -> bool:
        """Whether the prior judges the depth."""
        return self.prior is not None and self.prior_scale != 0

    @property
    def uses_target(self) -> bool:
        """Whether there is a target to reach."""
        return self.target is not None and self.target_scale != 0

    @property
    def acts(self) -> bool:
        """Whether there is anything to do."""
        return self.consistency_scale != 0 or self.uses_prior or self.uses_target

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches of the head that are read."""
        return (STRONG, WEAK) if self.consistency_scale != 0 else (STRONG,)

    @property
    def guiding_branches(self) -> tuple[str, ...]:
        """The branches with a gradient: for consistency, the strong depth is a constant."""
        return self.branches if self.uses_prior or self.uses_target else self.branches[-1:]


@dataclass(frozen=True)
class Networks:
    """Head and prior for one run, on the model's device, with tensors that autograd accepts."""

    head: DepthNetwork
    prior: DepthPrior | None


def losses(
    settings: DepthAwareSettings, networks: Networks, depth: Tensor, time: Tensor, seeded: torch.Generator
) -> Iterator[dag.Term]:
    """The losses that act; depth: the strong map (B, 1, h, w), read at time (B,)."""
    weight = dag.PAPER_WEIGHT if settings.mode == PAPER else 1.0
    if settings.consistency_scale != 0:
        level = consistency_level(settings, time)
        yield dag.Term(weight * settings.consistency_scale, dag.consistency_loss, level)
    if networks.prior is not None and settings.uses_prior:
        tau = drawn_tau(seeded)
        loss = prior_loss(settings.mode, networks.prior, depth, tau, seeded)
        yield dag.Term(weight * settings.prior_scale, loss, prior_level(settings, time, tau))
    found = target_of_batch(settings, depth)
    if found is not None:
        target, mask = found
        of_target = weight if settings.mode == PAPER else dag.TARGET_WEIGHT
        sigma = settings.target_blur * min(depth.shape[-2:])
        yield dag.Term(
            of_target * settings.target_scale, lambda strong, _: dag.target_loss(strong, target, mask, sigma)
        )


def consistency_level(settings: DepthAwareSettings, time: Tensor) -> Level | None:
    """The level of the consistency loss at times (B,)."""
    calibration = settings.head.head.calibration
    if settings.mode == PAPER or calibration is None or calibration.consistency is None:
        return None
    return Level(*calibration.consistency.at(time))


def prior_level(settings: DepthAwareSettings, time: Tensor, tau: int) -> Level | None:
    """The level of the prior's loss at times (B,) and its timestep tau, linear between the ends of tau."""
    if settings.mode == PAPER or settings.prior_levels is None:
        return None
    low, high = dag.PRIOR_LEVELS
    share = (tau / TIMESTEPS - low) / (high - low)
    return Level(
        *(a.lerp(b, share) for a, b in zip(*(ends.at(time) for ends in settings.prior_levels), strict=True))
    )


def drawn_tau(seeded: torch.Generator) -> int:
    """A timestep of the prior within dag.PRIOR_LEVELS."""
    low, high = dag.PRIOR_LEVELS
    return int((low + (high - low) * torch.rand((), generator=seeded)) * TIMESTEPS)


def prior_loss(mode: str, prior: DepthPrior, depth: Tensor, tau: int, seeded: torch.Generator) -> dag.Loss:
    """The loss of DPG at timestep tau. The noises are the same for all maps in `depth`.

    The images of a batch share them, as they share the seed, so each is guided as it would be alone.
    """
    abar = schedule().tolist()[tau]
    etas = torch.randn(dag.PRIOR_NOISES, 1, 1, prior.size, prior.size, generator=seeded).to(depth)
    eps = eps_phi(prior.unet, tau)
    if mode == PAPER:
        return lambda strong, _: dag.prior_loss(to_prior(strong, prior.size), etas[0], abar, eps)
    return lambda strong, _: dag.denoised_prior_loss(to_prior(strong, prior.size), etas, abar, eps)


def target_of_batch(settings: DepthAwareSettings, like: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """The target and its mask for a batch like this, at its resolution; None if no target acts."""
    if settings.target is None or not settings.uses_target:
        return None
    mask = None if settings.target_mask is None else of_batch(settings.target_mask, like)
    return of_batch(settings.target, like), mask


def flat_targets(settings: DepthAwareSettings, latent: Tensor) -> list[int]:
    """The images of a batch of latents (B, C, ..., h, w) whose target has no shape that they could take."""
    if latent.ndim < 4:  # video and sound
        return []
    found = target_of_batch(settings, latent.float())
    return [] if found is None else dag.is_flat(*found).nonzero().flatten().tolist()


def of_batch(maps: Tensor, like: Tensor) -> Tensor:
    """Maps (N, 1, h, w) for a batch, at its resolution: the first of them, or repeated in turn.

    Maps of another aspect ratio are cropped at the centre, as the host's ControlNets do.
    """
    maps = centre_crop(maps.to(like), *like.shape[-2:])
    if maps.shape[-2:] != like.shape[-2:]:
        maps = resize_antialiased(maps, *like.shape[-2:])
    return maps[torch.arange(len(like), device=maps.device) % len(maps)]
