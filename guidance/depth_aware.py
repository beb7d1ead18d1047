"""Depth-Aware Guidance (DAG, arXiv:2212.08861): the mathematics of one step.

    x          noisy latent                        x0         clean estimate
    d_S, d_W   depth, strong and weak branch       eta        noise on a depth map
    tau, abar  its level, 0 clean to 1             eps_phi    the depth prior, predicts eta
    L          a loss of the depth maps            g          grad_x L, through the heads and the UNet

One step: while the model computes x0 from x, the depth heads read d_S and d_W from its features. Every loss
is a function of these maps, so `pull` adds up the gradients of the losses there, and one vector-Jacobian
product through the heads and the UNet turns the sum into g, whatever the number of losses. `paper_shift` or
`robust_shift` turns g into a shift of x0, which every sampler understands.

Depth is relative inverse depth in [0, 1], near = 1: (B, 1, h, w). Losses are (B,), one per image; gradients
are taken of their sum, so an image's guidance does not depend on its batch. Derivations: docs/derivations.md.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .gaussian_blur import gaussian_blur
from .hinge import Level, hinge_slope

# The paper's w_dc and w_dp.
PAPER_WEIGHT = 40.0
# A robust shift at strength 1, in posterior standard deviations of x0.
ROBUST_STEP = 0.3
# Factor on the strength of a target in the robust mode. Half of it moves objects only half way and leaves
# them half formed (docs/results/depth_aware_guidance.md).
TARGET_WEIGHT = 3.0
# Limits of the scale by which a target depth map is fitted to the estimate.
TARGET_STRETCH = (0.5, 2.0)
# Variance of a depth map below which it counts as flat.
FLAT_VARIANCE = 1e-8
# Variance of a target in [0, 1] below which it has no shape: greys that differ by a thousandth.
FLAT_TARGET = 1e-6
# The levels of noise, as shares of the prior's schedule, at which the prior judges a depth map. At higher
# levels blurred and flattened maps have a lower loss than real ones (docs/results/prior_levels.md).
PRIOR_LEVELS = (0.01, 0.05)
# The number of noises that `denoised_prior_loss` averages over.
PRIOR_NOISES = 4

# A function of d_S and d_W; d_W is None if the weak branch is not read.
Loss = Callable[[Tensor, Any], Tensor]


class Term(NamedTuple):
    """A loss and its strength. level: of real images, for a calibrated loss; None for the loss as it is."""

    strength: float
    loss: Loss
    level: Level | None = None


def per_image_mean(t: Tensor) -> Tensor:
    """(B, ...) -> (B,)."""
    return t.flatten(1).mean(dim=1)


def rms(t: Tensor) -> Tensor:
    """Root mean square of each image: (B, C, *spatial) -> (B, 1, ...) of as many dimensions."""
    return t.square().mean(dim=tuple(range(1, t.ndim)), keepdim=True).sqrt()


def consistency_loss(d_strong: Tensor, d_weak: Tensor) -> Tensor:
    """DCG: L_dc = || stopgrad(d_S) - d_W ||^2 (B,), the mean over the pixels.

    The strong branch is the pseudo-label of the weak one, so the gradient runs through d_W only. The paper
    does not say whether its norm is a sum or a mean; with the mean, a strength means the same at every
    resolution.
    """
    return per_image_mean((d_strong.detach() - d_weak).square())


def noised_depth(d: Tensor, eta: Tensor, abar: Tensor | float) -> Tensor:
    """d_tau = sqrt(abar) d + sqrt(1 - abar) eta."""
    return abar**0.5 * d + (1 - abar) ** 0.5 * eta


def prior_loss(d: Tensor, eta: Tensor, abar: Tensor | float, eps_phi: Callable[[Tensor], Tensor]) -> Tensor:
    """DPG: L_dp = || eta - eps_phi(d_tau, tau) ||^2 (B,), the mean over the pixels.

    d: the strong depth, as the prior sees depth maps. eps_phi takes d_tau; its tau is bound. The gradient
    runs through eps_phi, without a stop.
    """
    return per_image_mean((eta - eps_phi(noised_depth(d, eta, abar))).square())


def denoised_prior_loss(
    d: Tensor, etas: Tensor, abar: Tensor | float, eps_phi: Callable[[Tensor], Tensor]
) -> Tensor:
    """DPG in the robust mode: || d - stopgrad(D_phi(d_tau)) ||^2 (B,), the mean over the pixels.

        D_phi(d_tau) = (d_tau - sqrt(1 - abar) eps_phi(d_tau)) / sqrt(abar)

    The prior's denoised map is the pseudo-label of d, as d_S is of d_W. It is averaged over etas (n, B, 1, h,
    w); with B = 1 all images share them. Up to a factor, the gradient is eps_phi - eta: that of L_dp without
    the Jacobian of eps_phi, as in score distillation (arXiv:2209.14988, equation 3). Why:
    docs/derivations.md.
    """
    noised = noised_depth(d.detach(), etas, abar)
    with torch.no_grad():
        predicted = eps_phi(noised.flatten(0, 1)).view_as(noised)
    denoised = (noised - (1 - abar) ** 0.5 * predicted) / abar**0.5
    return per_image_mean((d - denoised.mean(dim=0)).square())


def fit_target(target: Tensor, d: Tensor, mask: Tensor | None = None) -> Tensor:
    """The fit a target + b, closest to d by least squares inside the mask; a constant for autograd.

    Depth from one image is known up to scale and shift. The scale a is limited to TARGET_STRETCH: an estimate
    that does not resemble the target yet would be fitted by a = 0, which asks for flatness, or by a negative
    a, which swaps near and far. mask: in [0, 1], broadcast to d; None is everywhere.
    """
    d = d.detach()
    share = _shares(d, mask)
    centred = target - _mean(target, share)
    a = _mean(centred * (d - _mean(d, share)), share)
    a = a / _mean(centred.square(), share).clamp_min(torch.finfo(d.dtype).tiny)
    return a.clamp(*TARGET_STRETCH) * centred + _mean(d, share)


def target_loss(d: Tensor, target: Tensor, mask: Tensor | None = None, sigma: float = 0.0) -> Tensor:
    """|| d - fit_target(target, d) ||^2 / || d - mean(d) ||^2 (B,), inside the mask.

    The share of the depth's variance that the target does not explain. Without the denominator, a flatter
    image would have a lower loss, and guidance would drain contrast. sigma: blur of both maps before they are
    compared, in cells; 0 compares them as they are. The loss is 0 where the target is flat after the blur: it
    has no shape to follow, and the gradient would be rounding.
    """
    d, target = blur_inside(d, mask, sigma), blur_inside(target, mask, sigma)
    share = _shares(d, mask)
    unexplained = _mean((d - fit_target(target, d, mask)).square(), share)
    spread = _mean((d - _mean(d, share)).square(), share)
    return (unexplained / spread.clamp_min(FLAT_VARIANCE)).flatten() * ~is_flat(target, mask)


def blur_inside(d: Tensor, mask: Tensor | None, sigma: float) -> Tensor:
    """blur(mask d) / blur(mask), the blur (sigma in cells) of what is inside the mask; None is everywhere."""
    if mask is None:
        return gaussian_blur(d, sigma)
    return _divide(gaussian_blur(mask * d, sigma), gaussian_blur(mask.to(d), sigma))


def is_flat(target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Whether a target (B, 1, h, w) is of one grey inside the mask: (B,)."""
    share = _shares(target, mask)
    variance = _mean((target - _mean(target, share)).square(), share)
    return variance.flatten() < FLAT_TARGET


def _shares(d: Tensor, mask: Tensor | None) -> Tensor:
    """The weights of an average over the mask, (B, 1, h, w); all 0 if it is empty. None is everywhere."""
    weight = torch.ones_like(d) if mask is None else mask.expand_as(d)
    return weight / weight.sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(d.dtype).tiny)


def _mean(t: Tensor, share: Tensor) -> Tensor:
    return (share * t).sum(dim=(1, 2, 3), keepdim=True)


class Pull(NamedTuple):
    """The gradient of all losses with respect to the depth maps, (B, 1, h, w) each; weak is None without one.

    size (B, 1, 1, 1): RMS of the sum over the maps. With one normalised loss it is its strength, times the
    slope of its hinge; losses that agree add up, losses that disagree cancel.
    """

    strong: Tensor
    weak: Tensor | None
    size: Tensor

    def cotangents(self, scale: float) -> list[Tensor]:
        """The gradients, scaled to an RMS of `scale` in each image, for the vector-Jacobian product."""
        return [scale * _divide(t, self.size) for t in (self.strong, self.weak) if t is not None]


def pull(
    d_strong: Tensor,
    d_weak: Tensor | None,
    terms: Sequence[Term],
    normalise: bool,
) -> Pull:
    """Sum of strength * H'(L) * grad_d L over the terms, L = loss(d_S, d_W); H' = 1 without a level.

    normalise: divide the gradient of each loss by its RMS in each image first, so that a strength means the
    same for losses of different units. H' (hinge.py) comes after that, so that it is not divided out.
    """
    maps = [d.detach().requires_grad_() for d in (d_strong, d_weak) if d is not None]
    total = [torch.zeros_like(d) for d in maps]
    for strength, loss, level in terms:
        value = loss(maps[0], maps[1] if len(maps) > 1 else None)
        found = torch.autograd.grad(value.sum(), maps, allow_unused=True)
        size = rms(reduce(torch.add, [g for g in found if g is not None])) if normalise else 1.0
        weight = strength if level is None else strength * hinge_slope(value, level).view(-1, 1, 1, 1)
        for t, g in zip(total, found, strict=True):
            if g is not None:
                t += weight * _divide(g, size)
    return Pull(total[0], total[1] if len(total) > 1 else None, rms(reduce(torch.add, total)))


def _divide(t: Tensor, size: Tensor | float) -> Tensor:
    """The quotient t / size, 0 where an image's size is 0, and not finite where that is not."""
    if not isinstance(size, Tensor):
        return t / size
    return torch.where(size == 0, 0, t / size.clamp_min(torch.finfo(t.dtype).tiny))


def direction(gradient: Tensor, size: Tensor) -> Tensor:
    """A gradient (B, C, *spatial) with RMS `size` (B, 1, ...) in each image; 0 where the gradient is 0."""
    return size * _divide(gradient, rms(gradient))


def robust_shift(toward: Tensor, x0: Tensor, noise_share: Tensor, strength: float = ROBUST_STEP) -> Tensor:
    """The shift of x0 in the robust mode: -strength * noise_share * std(x0) * toward.

    toward: `direction` of g. noise_share b = c / sqrt(a^2 s^2 + c^2) for x = a x0 + c noise and data of
    standard deviation s: sigma / sqrt(sigma^2 + s^2) for eps, v and EDM models, sigma / sqrt(sigma^2 + (1 -
    sigma)^2) for flow models.

    By Tweedie's formula an energy k L shifts x0 by -k sigma^2 g, a descent step on L measured in the
    posterior deviation of x0, which is s b for Gaussian data; std(x0) stands for s. Samplers integrate D(x),
    so with a shift of it few steps and many converge to the same image. In full: docs/derivations.md.
    """
    return -strength * noise_share * x0.std(dim=tuple(range(1, x0.ndim)), keepdim=True) * toward


def paper_shift(gradient: Tensor, sigma: float, sigma_next: float, flow: bool = False) -> Tensor:
    """The shift of x0 that moves the mean of x_{t-1} by -grad L, as the paper does.

        x_{t-1} ~ N(mu - w_dc grad L_dc - w_dp grad L_dp, Sigma)
        shift = -g sqrt((1 + sigma^2) (1 + sigma_next^2)) / (1 - (sigma_next / sigma)^2)

    gradient g: of the weighted sum of the losses (w = PAPER_WEIGHT times a strength), with respect to x as
    the host has it. The root converts between the host's x and the paper's; the denominator is the share of a
    shift of x0 that an ancestral step (eta = 1) takes. flow: x is the paper's x, and the host's ancestral
    flow step has another share; at sigma_next >= 1 that is 0, as x_{t-1} is noise alone, and so is the shift.
    Where the noise of a flow model rises (unsampling), it is that of Euler's step. As sigma_next approaches
    sigma, the shift explodes: hence robust_shift.
    """
    ratio = sigma_next / sigma
    if flow and sigma_next >= 1:
        return torch.zeros_like(gradient)
    if flow and ratio > 1:
        return -gradient / (1 - ratio)
    if flow:
        sigma_down = sigma_next * ratio
        share = (1 - ratio**2) * (1 - sigma_next) / (1 - sigma_down)
        return -gradient / share
    share = 1 - ratio**2
    return -gradient * ((1 + sigma**2) * (1 + sigma_next**2)) ** 0.5 / share
