"""From recorded attention to maps at image size, averaged, and with numbers that mean something.

Self-attention received has mean 1 over an image: 1 is the average attention, 2 twice that. A word of a prompt
has a share of the attention of each place, which depends on the length of the prompt; `relative` divides it
by its mean over the image, so that 1 is the average there too.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .recorded import Recorded

# The lightest colour: the few tokens above it would otherwise leave the rest of the picture dark.
TOP_QUANTILE = 0.995
# The average attention is never the lightest colour, not even where all attention is average.
LEAST_TOP = 2.0


def average(found: Sequence[Recorded], size: tuple[int, int], smooth: bool) -> Tensor:
    """The mean of maps of any grid at `size` (height, width): (B * frames, height, width), float32."""
    by_grid: dict[torch.Size, Tensor] = {}
    for one in found:
        grid = one.values.shape[1:]
        by_grid[grid] = by_grid.get(grid, 0) + one.values.float()
    return sum(resized(total, size, smooth) for total in by_grid.values()) / len(found)


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


def laid_over(images: Tensor, colours: Tensor, opacity: float) -> Tensor:
    """Colours (N, H, W, 3) over images (M, H, W, 3 or more), M >= N: of a video, evenly chosen ones.

    Raises ValueError where there are fewer images than maps.
    """
    if len(images) < len(colours):
        raise ValueError(
            f"image: {len(images)} image{'s' * (len(images) > 1)} cannot lie under {len(colours)} maps. Wire "
            "the decoded image of the sampler that was recorded."
        )
    chosen = [i * len(images) // len(colours) for i in range(len(colours))]
    return torch.lerp(images[chosen, ..., :3].to(colours), colours, opacity)
