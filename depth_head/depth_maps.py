"""Depth maps that a user connects, as every node reads them."""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from .metrics import normalise

# Difference of grey levels, as a share of the largest value, below which a map is uniform.
UNIFORM = 1e-3
# Rounding of resized maps leaves [0, 1] by this much.
TOLERANCE = 1e-3
PART = 32
# Mean difference between the colour channels, as a share of the largest value, above which maps are no greys.
COLOURED = 0.04


def read_depth_maps(images: Tensor, name: str) -> Tensor:
    """An IMAGE (N, h, w, C) as relative inverse depth (N, 1, h, w) in [0, 1], float32; near = 1.

    The mean of the colour channels; alpha is dropped. Maps within [0, 1] stay as they are, so that a batch
    may share a scale. If any value lies outside, each map is stretched from its own smallest value to its
    largest, and the log says so. It also says where maps are in colour. name: of the input, for messages.

    Raises ValueError for an empty batch, for values that are not finite and for maps that are uniform.
    """
    if not images.numel():
        raise ValueError(f"{name} is empty: connect depth images.")
    if images.ndim != 4:
        raise ValueError(
            f"{name} has {images.ndim} dimensions, and images have 4 (batch, height, width, colours): check "
            "the node that makes the depth maps."
        )
    channels = images.shape[-1]
    colour = images[..., : 1 if channels < 3 else 3].float()
    maps = colour.mean(dim=-1).unsqueeze(1)
    if not maps.isfinite().all():
        raise ValueError(f"{name} has values that are not finite: check the node that makes the depth maps.")
    # In parts, because of its copies: a batch of thousands of maps is large.
    if any((colourfulness(part) > COLOURED).any() for part in colour.split(PART)):
        logging.warning(
            "%s is in colour, but depth maps are grey: near is white, far is black. If these are photos, "
            "connect their depth maps; if they are depth maps, turn colours off in the node that makes them.",
            name,
        )
    low, high = maps.amin(dim=(1, 2, 3)), maps.amax(dim=(1, 2, 3))
    uniform = high - low < UNIFORM * maps.abs().amax(dim=(1, 2, 3)).clamp_min(1)
    if uniform.any():
        advice = "connect depth images, in which near is white and far is black."
        if not uniform.all():
            advice = f"leave them out; the first is number {int(uniform.nonzero()[0]) + 1}."
        raise ValueError(
            f"{name}: {int(uniform.sum())} of the {len(maps)} depth maps have a single grey value: {advice}"
        )
    if low.min() < -TOLERANCE or high.max() > 1 + TOLERANCE:
        logging.warning(
            "%s: depth from %g to %g is outside 0 to 1. Each map is stretched, and its largest value counts "
            "as nearest (1). If larger is farther, as in metres, invert the maps first.",
            name,
            float(low.min()),
            float(high.max()),
        )
        return normalise(maps)
    return maps.clamp(0, 1)


def colourfulness(images: Tensor) -> Tensor:
    """(N, h, w, C) -> (N,): the mean difference between channels, as a share of the largest value or of 1."""
    others = images - images[..., :1]
    return others.abs().mean(dim=(1, 2, 3)) / images.abs().amax(dim=(1, 2, 3)).clamp_min(1)


def read_target_depth(images: Tensor, name: str) -> Tensor:
    """A target (N, 1, h, w): read_depth_maps, each stretched to [0, 1], since only its shape counts."""
    return normalise(read_depth_maps(images, name))


def read_target_mask(mask: Tensor, name: str) -> Tensor:
    """A MASK (N, h, w), or (h, w), as (N, 1, h, w) in [0, 1], float32: what is darker than black is black.

    name: of the input. Raises ValueError for an empty mask, and for values that are not numbers.
    """
    if not mask.numel():
        raise ValueError(f"{name} is empty: connect a mask, or none.")
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    if mask.isnan().any():
        raise ValueError(f"{name} has values that are not numbers: check the node that makes the mask.")
    return mask.clamp(0, 1)


def centre_crop(maps: Tensor, height: int, width: int) -> Tensor:
    """The part of maps (N, 1, h, w) with the aspect ratio of height and width: the host's "center" crop.

    At least a row and a column of them, or two.
    """
    old_height, old_width = maps.shape[-2:]
    x = min(max(0, round((old_width - old_height * width / height) / 2)), (old_width - 1) // 2)
    y = min(max(0, round((old_height - old_width * height / width) / 2)), (old_height - 1) // 2)
    return maps[..., y : old_height - y, x : old_width - x]


def resize_antialiased(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps (N, C, h, w) at another size: bilinear, and averages where they shrink. Differentiable.

    As products with matrices: the backward pass of PyTorch's own kernel is missing in many versions on MPS,
    and on CUDA it adds numbers in any order.
    """
    down, across = (
        resizing_matrix(before, after).to(maps)
        for before, after in zip(maps.shape[-2:], (height, width), strict=True)
    )
    return down @ maps @ across.T


def resizing_matrix(before: int, after: int) -> Tensor:
    """What PyTorch's antialiased bilinear resizing multiplies a column by: (after, before), on the CPU."""
    columns = torch.eye(before)[None, None]
    return F.interpolate(columns, (after, before), mode="bilinear", antialias=True)[0, 0]
