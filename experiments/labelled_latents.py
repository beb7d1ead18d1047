"""Scenes of the demo world as latents with labels, on which depth heads are trained and judged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from comfy.sd import VAE
from torch import Tensor
from tqdm import tqdm

from ..demo.ray_casting import render
from ..demo.scenes import sample_scene
from ..depth_head.metrics import DepthRange

JUDGED_SEED = 10**6
"""Seed of the noise on the judged scenes, different from all training noise."""


@dataclass(frozen=True)
class LabelledLatents:
    """Latents (N, C, h, w) of renders, and their relative inverse depth (N, 1, h, w)."""

    latents: Tensor
    labels: Tensor


def encode_scenes(vae: VAE, first: int, count: int, size: int, depth_range: DepthRange) -> LabelledLatents:
    """Latents and labels of scenes with consecutive seeds."""
    latents, labels = [], []
    for seed in tqdm(range(first, first + count), desc="rendering", unit="scene"):
        seen = render(sample_scene(seed), size)
        latents.append(vae.encode(seen.rgb.movedim(0, -1)[None]).cpu())
        labels.append(depth_range.relative(seen.depth)[None, None])
    whole = torch.cat(latents)
    return LabelledLatents(whole, F.interpolate(torch.cat(labels), whole.shape[-2:], mode="area"))
