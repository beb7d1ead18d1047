"""Which of several starting noises suits a target depth: the one whose first estimate is closest to it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..guidance.depth_aware import target_loss
from ..host.depth.heads import HostedDepthHead
from ..host.sampling.frozen_model import FrozenModel, with_frozen_model

FIRST_TIME = 999.0
"""Time of the first estimate, at which x is noise alone."""


def starting_noises(noise: Tensor, count: int) -> Tensor:
    """The noise (B, ...) of a run and others, (count, B, ...)."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([noise, *(torch.randn(noise.shape, generator=generator) for _ in range(count - 1))])


def closest_noise(
    model: ModelPatcher, prompts: list[list[Any]], head: HostedDepthHead, noises: Tensor, target: Tensor
) -> Tensor:
    """Of noises (K, B, C, h, w), for each image the one with the least target loss, (B, C, h, w).

    The head reads the depth from the first evaluation of the prompt. target (B, 1, H, W): in [0, 1].
    """
    network = head.head.network
    maps = F.interpolate(target, noises.shape[-2:], mode="area")

    def losses(frozen: FrozenModel) -> Tensor:
        at = torch.full((len(target),), FIRST_TIME, device=frozen.device)
        found = []
        for noise in noises:
            features = frozen.features(list(network.taps), torch.zeros_like(noise), noise, at)
            (depth,) = network.branches(features, at, noise.shape[-2:], ("strong",))
            found.append(target_loss(depth.cpu().float(), maps))
        return torch.stack(found)

    chosen = with_frozen_model(model, prompts, noises.shape[1:], losses, [head.patcher]).argmin(0)
    return noises[chosen, torch.arange(len(target))]
