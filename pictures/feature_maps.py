"""What a model's features have in common, as colours and as regions.

    f    features of a token, C channels           mu   their mean over all tokens
    V    principal axes of f - mu, by variance      z    (f - mu) V

The first three of z are red, green and blue; k-means on the first COMPONENTS of z cuts the picture into
regions. mu, V and the regions are those of all steps and images together, so a colour means the same in each.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .layer_maps import LayerMap, grouped

COMPONENTS = 16
# This share of the tokens is clipped at each end of every colour channel.
CLIPPED = 0.01
ITERATIONS = 50


class FeaturePicture(NamedTuple):
    """Features of B images, or frames, at one step or in the mean over steps.

    colours (B, 3, h, w) in [0, 1]; region (B, h, w), the number of a token's region; region_colours
    (regions, 3), the mean colour of the tokens of each, over all steps.
    """

    title: str
    colours: Tensor
    region: Tensor
    region_colours: Tensor


def feature_pictures(
    found: Sequence[LayerMap], each_block: bool, each_step: bool, regions: int, seed: int
) -> list[FeaturePicture]:
    """LayerMap features (B, C, *grid) as pictures, in the order of the blocks, then of the steps.

    each_block False: one picture of all blocks together, each with the same weight; of steps that have them
    all. each_step False: of the mean over the steps, on the finest grid. seed: of the k-means. Raises
    ValueError if no step has all blocks.
    """
    if each_step and not each_block:
        found = _complete(found)
    of_blocks = []
    for block in grouped(found, each_block=True, each_step=False):
        steps = [_frames(one.values.float()) for one in block.members]
        of_blocks.append(
            principal_components(
                steps if each_step else [reduce(torch.add, _on(_finest(steps), steps)) / len(steps)]
            )
        )
    if not each_block and len(of_blocks) > 1:
        of_blocks = [principal_components(joined(of_blocks))]
    titles = [group.title for group in grouped(found, each_block, each_step)]
    shown = []
    for z in of_blocks:
        colours, region = as_colours(z), cut(z, regions, seed)
        of_region = mean_colours(colours, region, regions)
        shown += [(c, r, of_region) for c, r in zip(colours, region, strict=True)]
    return [FeaturePicture(title, *parts) for title, parts in zip(titles, shown, strict=True)]


def _complete(found: Sequence[LayerMap]) -> list[LayerMap]:
    """The features of the steps at which every block was recorded: a cache may skip blocks in some steps."""
    blocks = list(dict.fromkeys(one.block for one in found))
    recorded = {(one.step, one.block) for one in found}
    complete = [one for one in found if all((one.step, block) in recorded for block in blocks)]
    if not complete:
        raise ValueError(
            f"Feature Maps: no recorded step has all of {', '.join(blocks)}. Set blocks to each, or steps to "
            "average."
        )
    return complete


def _finest(pictures: Sequence[Tensor]) -> torch.Size:
    """The grid (h, w) with the most places: a node may shrink the latent inside the model in some steps."""
    return max((p.shape[2:] for p in pictures), key=lambda grid: grid.numel())


def _on(grid: torch.Size, pictures: Sequence[Tensor]) -> list[Tensor]:
    """Tensors (B, C, h, w) on one grid, bilinear."""
    return [p if p.shape[2:] == grid else F.interpolate(p, grid, mode="bilinear") for p in pictures]


def _frames(features: Tensor) -> Tensor:
    """Frames of a video (B, C, frames, h, w) as images (B * frames, C, h, w)."""
    return features if features.ndim == 4 else features.movedim(2, 1).flatten(0, 1)


def principal_components(features: Sequence[Tensor], count: int = COMPONENTS) -> list[Tensor]:
    """The first z of tensors (B, C, h, w), fitted to all of them: (B, min(count, C), h, w), float32.

    The largest entry of each axis is positive, so that colours do not depend on the linear algebra library.
    """
    tokens = sum(f[:, 0].numel() for f in features)
    mean = reduce(torch.add, [f.double().sum(dim=(0, 2, 3)) for f in features]) / tokens
    covariance = reduce(torch.add, [_scatter(_centred(f, mean)) for f in features]) / tokens
    axes = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :count]
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    return [torch.einsum("bchw,ck->bkhw", _centred(f, mean), axes).float() for f in features]


def _centred(features: Tensor, mean: Tensor) -> Tensor:
    return features.double() - mean[:, None, None]


def _scatter(features: Tensor) -> Tensor:
    flat = _by_channel(features)
    return flat @ flat.T


def _by_channel(features: Tensor) -> Tensor:
    """(B, C, h, w) as (C, tokens)."""
    return features.transpose(0, 1).flatten(1)


def joined(blocks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Components of several blocks as one: blocks[i][j] (B, k_i, h_i, w_i) to [j] (B, sum k_i, h, w).

    Each block is resized to the finest grid and scaled to the same total variance. One that is the same
    everywhere, up to rounding, adds nothing.
    """
    finest = _finest([picture for pictures in blocks for picture in pictures])
    scaled = []
    for pictures in blocks:
        variance = torch.cat([_by_channel(p) for p in pictures], dim=1).var(dim=1, correction=0).sum()
        deviation = variance.sqrt().clamp_min(torch.finfo(variance.dtype).eps)
        scaled.append(_on(finest, [p / deviation for p in pictures]))
    return [torch.cat(of_picture, dim=1) for of_picture in zip(*scaled, strict=True)]


def as_colours(components: Sequence[Tensor]) -> list[Tensor]:
    """The first three of z (B, k, h, w) as RGB (B, 3, h, w) in [0, 1], on the same scale in all pictures.

    With fewer than three channels the last one is repeated.
    """
    of_all = torch.cat([_by_channel(z) for z in components], dim=1)
    channels = [min(i, len(of_all) - 1) for i in range(3)]
    low, high = np.quantile(of_all[channels].numpy(), [CLIPPED, 1 - CLIPPED], axis=1).astype(np.float32)
    low, high = (torch.from_numpy(bound)[:, None, None] for bound in (low, high))
    span = (high - low).clamp_min(torch.finfo(low.dtype).eps)
    return [((z[:, channels] - low) / span).clamp(0, 1) for z in components]


def cut(components: Sequence[Tensor], count: int, seed: int) -> list[Tensor]:
    """Tokens of z (B, k, h, w) by k-means as regions 0 ... count - 1, the largest first: (B, h, w), int64."""
    from scipy.cluster.vq import kmeans2  # here, because its import takes 0.1 s of the host's start

    tokens = torch.cat([z.movedim(1, -1).flatten(0, 2) for z in components])
    # Where the square of a distance overflows, scipy ends the process. By a power of 2, which rounds nothing.
    tokens = torch.ldexp(tokens, -tokens.abs().max().frexp().exponent)
    _, label = kmeans2(tokens.numpy(), count, iter=ITERATIONS, minit="++", seed=seed)
    rank = np.argsort(np.argsort(-np.bincount(label, minlength=count), kind="stable"))
    shapes = [(z.shape[0], *z.shape[2:]) for z in components]
    parts = torch.from_numpy(rank[label]).split([int(np.prod(shape)) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def mean_colours(colours: Sequence[Tensor], regions: Sequence[Tensor], count: int) -> Tensor:
    """The mean colour (count, 3) of each region (B, h, w) over the tokens (B, 3, h, w) of all pictures."""
    of_all = torch.cat([_by_channel(c) for c in colours], dim=1)
    region = torch.cat([r.flatten() for r in regions])
    total = of_all.new_zeros(3, count).index_add_(1, region, of_all)
    return (total / region.bincount(minlength=count).clamp_min(1)).T


def at_size(colours: Tensor, size: Sequence[int], smooth: bool) -> Tensor:
    """Colours (B, 3, h, w) as images (B, height, width, 3); smooth is bicubic."""
    return F.interpolate(colours, size, mode="bicubic" if smooth else "nearest").clamp(0, 1).movedim(1, -1)


def regions_at_size(region: Tensor, count: int, size: Sequence[int], smooth: bool) -> Tensor:
    """Regions (B, h, w) as (B, height, width), numbers still; smooth rounds their borders."""
    share = F.one_hot(region, count).movedim(-1, 1).float()
    return F.interpolate(share, size, mode="bicubic" if smooth else "nearest").argmax(dim=1)


def region_masks(region: Tensor, count: int) -> Tensor:
    """A mask of zeros and ones for each region of each picture: (B, H, W) to (B * count, H, W)."""
    return F.one_hot(region, count).movedim(-1, 1).flatten(0, 1).float()
