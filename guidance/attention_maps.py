"""From recorded attention to maps at image size: chosen, averaged, and with numbers that mean something.

Self-attention received has mean 1 over an image: 1 is the average attention, 2 twice that. A word of a prompt
has a share of the attention of each place, which depends on the length of the prompt; `relative` divides it
by its mean over the image, so that 1 is the average there too.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The lightest colour: the few tokens above it would otherwise leave the rest of the picture dark.
TOP_QUANTILE = 0.995
# The average attention is never the lightest colour, not even where all attention is average.
LEAST_TOP = 2.0


class LayerMap(NamedTuple):
    """The map of one layer at one step: values (B, h, w), or (B, frames, h, w) for videos."""

    step: int
    layer: str
    values: Tensor

    @property
    def block(self) -> str:
        """The block that the layer is in: "m0" for its transformer "m0.3"."""
        return self.layer.partition(".")[0]


class Group(NamedTuple):
    """Maps that are averaged; block and step are None where several are in it."""

    block: str | None
    step: int | None
    maps: list[LayerMap]


def grouped(maps: Iterable[LayerMap], each_block: bool, each_step: bool) -> list[Group]:
    """Maps by block and step, or all blocks or steps in one group. In the order of the maps, blocks first."""
    groups: dict[tuple[str | None, int | None], list[LayerMap]] = {}
    for one in maps:
        key = (one.block if each_block else None, one.step if each_step else None)
        groups.setdefault(key, []).append(one)
    blocks = list(dict.fromkeys(block for block, _ in groups))
    in_order = sorted(groups.items(), key=lambda item: (blocks.index(item[0][0]), item[0][1] or 0))
    return [Group(block, step, found) for (block, step), found in in_order]


def average(maps: Sequence[LayerMap], size: tuple[int, int], smooth: bool) -> Tensor:
    """The mean of maps, each at `size` (height, width): (B * frames, height, width), float32."""
    return sum(resized(one.values, size, smooth) for one in maps) / len(maps)


def resized(values: Tensor, size: tuple[int, int], smooth: bool) -> Tensor:
    """A map (B, h, w) or (B, frames, h, w) as (B * frames, *size), float32.

    smooth is bicubic, cut off below at 0, which attention never is; otherwise every token is a rectangle.
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


def lightest(maps: Sequence[Tensor]) -> float:
    """The attention to show in the lightest colour in all maps (N, H, W): their largest TOP_QUANTILE."""
    pictures = [picture.flatten() for several in maps for picture in several]
    # Not quantile, which refuses pictures beyond 4000 x 4000 px.
    tops = [float(p.kthvalue(math.ceil(TOP_QUANTILE * p.numel())).values) for p in pictures]
    return max(LEAST_TOP, *tops)


def mask(values: Tensor, threshold: float, top: float) -> Tensor:
    """1 where the attention exceeds the threshold, else 0; threshold 0: soft, from 0 to 1 at `top`."""
    if threshold == 0:
        return (values / top).clamp(0, 1)
    return (values > threshold).to(values.dtype)
