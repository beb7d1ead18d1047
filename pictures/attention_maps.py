"""Recorded attention as maps at image size, averaged, and scaled so that their numbers are comparable.

Self-attention received has mean 1 over an image: 1 is the average attention, 2 twice that. A word of a prompt
has a share of the attention of each place, which depends on the length of the prompt; `relative` divides it
by its mean over the image, so that 1 is the average there too.
"""

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from .colour_map import ColourMap, colours
from .images import images_of
from .layer_maps import Group, LayerMap, grouped

# This share of a picture is clipped at each end of the colour range. Otherwise a few extreme tokens would use
# up most of the range.
BEYOND = 0.005
# The colour range includes at least these values, so that tiny differences look tiny.
LEAST_RANGE = (0.5, 2.0)


def average(found: Sequence[LayerMap], size: Sequence[int], smooth: bool) -> Tensor:
    """The mean of maps of any grid at `size` (height, width): (B * frames, height, width), float32."""
    by_grid: dict[torch.Size, Tensor] = {}
    for one in found:
        grid = one.values.shape[1:]
        by_grid[grid] = by_grid.get(grid, 0) + one.values.float()
    return reduce(torch.add, [resized(total, size, smooth) for total in by_grid.values()]) / len(found)


def resized(values: Tensor, size: Sequence[int], smooth: bool) -> Tensor:
    """A map (B, h, w) or (B, frames, h, w) as (B * frames, *size), float32.

    smooth: bicubic, clamped at 0. Otherwise every token is a rectangle.
    """
    values = values.float().flatten(0, -3).unsqueeze(1)
    if smooth:
        values = F.interpolate(values, size, mode="bicubic").clamp_min(0)
    else:
        values = F.interpolate(values, size, mode="nearest")
    return values.squeeze(1)


def relative(shares: Tensor) -> Tensor:
    """Shares (N, H, W) divided by their mean over the picture; a picture without any stays 0."""
    return shares / shares.mean(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)


def colour_range(maps: Sequence[Tensor]) -> tuple[float, float]:
    """The attention to show in the darkest and in the lightest colour of all maps (N, H, W)."""
    pictures = [picture.flatten() for several in maps for picture in several]

    def ranked(picture: Tensor, share: float) -> float:
        # Not quantile, which refuses pictures beyond 4000 x 4000 px.
        return float(picture.kthvalue(max(1, math.ceil(share * picture.numel()))).values)

    low = min(LEAST_RANGE[0], *(ranked(picture, BEYOND) for picture in pictures))
    return low, max(LEAST_RANGE[1], *(ranked(picture, 1 - BEYOND) for picture in pictures))


def mask(values: Tensor, threshold: float, low: float, high: float) -> Tensor:
    """1 where the attention exceeds the threshold, else 0; threshold 0: soft, from 0 at low to 1 at high."""
    if threshold == 0:
        return scaled(values, low, high)
    return (values > threshold).to(values.dtype)


def scaled(values: Tensor, low: float, high: float) -> Tensor:
    """Where values stand between low, 0, and high, 1."""
    return ((values - low) / (high - low)).clamp(0, 1)


def overlaid(images: Tensor, colours: Tensor, shares: Tensor, opacity: float) -> Tensor:
    """Images (N, H, W, 3), dimmed, under the colours. The larger the share (N, H, W), the more opaque."""
    return torch.lerp(images * (1 - opacity / 3), colours, opacity * shares[..., None])


def series(
    by_word: dict[str, list[LayerMap]], each_block: bool, each_step: bool
) -> Iterator[tuple[str, list[Group]]]:
    """The pictures that share a colour bar: those of one word and block."""
    for word, recorded in by_word.items():
        for _, groups in groupby(grouped(recorded, each_block, each_step), lambda group: group.block):
            yield word, list(groups)


def captions_of(word: str, groups: list[Group], found: list[Tensor], with_share: bool) -> list[str]:
    """The captions of the maps (N, H, W) of each group: word, its share of the attention, and group."""
    captions = []
    for group, values in zip(groups, found, strict=True):
        for number, share in enumerate(values.mean(dim=(1, 2)).tolist(), 1):
            which = f"image {number}: " if len(values) > 1 else ""
            captions.append(f"{which}{word}{f' ({share:.1%})' if with_share else ''}, {group.title}")
    return captions


def in_colour(
    found: list[Tensor],
    colour_map: ColourMap,
    low: float,
    high: float,
    image: Tensor | None,
    opacity: float,
) -> Tensor:
    """All maps (N, H, W) as pictures, drawn over the N images if given: (sum of N, H, W, 3)."""
    pictures = []
    for values in found:
        share = scaled(values, low, high)
        coloured = colours(share, colour_map)
        if image is not None:
            coloured = overlaid(images_of(image, len(share)), coloured, share, opacity)
        pictures.append(coloured)
    return torch.cat(pictures)
