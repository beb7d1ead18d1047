"""Small, quick pictures of one recorded step, for the preview while an image forms."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_maps import average, colour_range, scaled
from .colour_map import COLOUR_MAPS, colours
from .feature_maps import as_colours
from .layer_maps import LayerMap

LONGER_SIDE = 256  # of each picture, in pixels
MOST_PICTURES = 4  # of a batch, side by side


def attention_picture(maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The mean of several layers' attention (B, *grid) in colour, in the shape of an image of this size.

    Returns (h, w, 3) in [0, 1], up to MOST_PICTURES side by side.
    """
    shown = average([LayerMap(0, "", one[:MOST_PICTURES]) for one in maps], small(size), smooth=True)
    shown = shown[:MOST_PICTURES]
    return side_by_side(colours(scaled(shown, *colour_range([shown])), COLOUR_MAPS["ember"]))


def feature_picture(features: Tensor, size: Sequence[int]) -> Tensor:
    """The first three principal components of features (B, C, *grid) as red, green and blue: (h, w, 3).

    They are fitted to these features alone, so colours change from step to step.
    """
    shown = features[:MOST_PICTURES].float()
    pictures = shown.movedim(1, -1).flatten(0, -4)[:MOST_PICTURES]
    tokens = pictures.flatten(0, 2)
    with torch.random.fork_rng(devices=[]):  # or an ancestral sampler would draw other noise
        _, _, axes = torch.pca_lowrank(tokens, q=min(6, *tokens.shape))
    axes = axes[:, :3]
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    components = ((tokens - tokens.mean(dim=0)) @ axes).view(*pictures.shape[:3], -1).movedim(-1, 1)
    (coloured,) = as_colours([components])
    return side_by_side(F.interpolate(coloured, small(size), mode="bicubic").clamp(0, 1).movedim(1, -1))


def depth_picture(depth: Tensor) -> Tensor:
    """Depth maps (B, 1, h, w) in [0, 1] as they were read, near = white: (H, W, 3)."""
    large = F.interpolate(depth[:MOST_PICTURES], small(depth.shape[-2:]), mode="bilinear")
    return side_by_side(large.movedim(1, -1).expand(-1, -1, -1, 3))


def small(size: Sequence[int]) -> tuple[int, int]:
    """A size (height, width) with LONGER_SIDE as its longer side."""
    height, width = (max(1, round(side * LONGER_SIDE / max(size))) for side in size)
    return height, width


def side_by_side(pictures: Tensor) -> Tensor:
    """Pictures (N, h, w, 3) in a row."""
    return torch.cat(list(pictures), dim=1)
