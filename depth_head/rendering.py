"""Depth as a picture: at image size, in grey or in colour."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pictures.colour_map import COLOUR_MAPS, colours
from .metrics import normalise

RAW, NORMALISED = "raw", "normalised"
STYLES = (NORMALISED, RAW, *(name for name in COLOUR_MAPS if name != "grey"))

# Of the guided filter: variance of the picture's brightness, within a window, that counts as an edge.
EDGE_VARIANCE = 1e-3


def enlarge(depth: Tensor, size: Sequence[int]) -> Tensor:
    """(B, 1, h, w) at another size, bilinear."""
    return F.interpolate(depth, tuple(size), mode="bilinear")


def enlarge_along_edges(depth: Tensor, picture: Tensor) -> Tensor:
    """(B, 1, h, w) at the size of a picture (B, 3, H, W) in [0, 1], with the edges of the picture.

    A guided filter (He et al. 2013): within every window, depth is a linear function of the picture's
    colours. A window spans two pixels of the small map.
    """
    # Takes a second to import; at the top it would delay the host's start.
    from kornia.filters import guided_blur

    large = enlarge(depth, picture.shape[-2:])
    shrunk = max(1, round(picture.shape[-1] / depth.shape[-1]))
    window = min(2 * shrunk + 1, 2 * min(picture.shape[-2:]) - 1)
    # One by one, because of its copies: 330 bytes for each pixel.
    along = [
        guided_blur(*one, window, EDGE_VARIANCE) for one in zip(picture.split(1), large.split(1), strict=True)
    ]
    return torch.cat(along).clamp(0, 1)


def as_picture(depth: Tensor, style: str) -> Tensor:
    """(B, 1, H, W) as pictures (B, H, W, 3): raw, stretched per image from black to white, or in colours."""
    if style != RAW:
        depth = normalise(depth)
    if style in COLOUR_MAPS:
        return colours(depth[:, 0], COLOUR_MAPS[style])
    return depth.movedim(1, -1).expand(-1, -1, -1, 3)
