"""What a model's features have in common, as colours and as regions.

    f    features of a token, C channels           mu   their mean over all chosen tokens
    V    principal axes of f - mu, by variance      z    (f - mu) V

The first three of z are red, green and blue; k-means on the first COMPONENTS of z cuts the picture into
regions. mu, V and the regions are those of all chosen steps and pictures together, so a colour means the same
in each of them.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

COMPONENTS = 16
# Of each colour channel, this share of the tokens is beyond black, and as much beyond full light.
CLIPPED = 0.01
ITERATIONS = 50


def principal_components(features: Sequence[Tensor], count: int = COMPONENTS) -> list[Tensor]:
    """The first z of tensors (B, C, h, w), fitted to all of them: (B, min(count, C), h, w), float32.

    Axes point where their largest entry is positive, so that colours do not depend on the linear algebra
    library's whim.
    """
    tokens = sum(f[:, 0].numel() for f in features)
    mean = sum(f.double().sum(dim=(0, 2, 3)) for f in features) / tokens
    covariance = sum(_scatter(centred(f, mean)) for f in features) / tokens
    axes = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :count]
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    return [torch.einsum("bchw,ck->bkhw", centred(f, mean), axes).float() for f in features]


def centred(features: Tensor, mean: Tensor) -> Tensor:
    """Features minus their mean, in float64."""
    return features.double() - mean[:, None, None]


def _scatter(features: Tensor) -> Tensor:
    flat = features.transpose(0, 1).flatten(1)
    return flat @ flat.T


def joined(blocks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Components of several blocks as one: blocks[i][j] (B, k_i, h_i, w_i) to [j] (B, sum k_i, h, w).

    Resized to the finest grid, and each block with the same variance in all.
    """
    finest = max((pictures[0].shape[2:] for pictures in blocks), key=lambda grid: grid.numel())
    scaled = []
    for pictures in blocks:
        variance = torch.cat([p.transpose(0, 1).flatten(1) for p in pictures], dim=1).var(dim=1).sum()
        scaled.append([F.interpolate(p / variance.sqrt(), finest, mode="bilinear") for p in pictures])
    return [torch.cat(of_picture, dim=1) for of_picture in zip(*scaled, strict=True)]


def as_colours(components: Sequence[Tensor]) -> list[Tensor]:
    """The first three of z (B, k, h, w) as RGB (B, 3, h, w) in [0, 1], on the same scale in all pictures.

    With fewer than three channels the last one is repeated.
    """
    of_all = torch.cat([z.transpose(0, 1).flatten(1) for z in components], dim=1)
    channels = [min(i, len(of_all) - 1) for i in range(3)]
    low, high = np.quantile(of_all[channels].numpy(), [CLIPPED, 1 - CLIPPED], axis=1).astype(np.float32)
    low, high = (torch.from_numpy(bound)[:, None, None] for bound in (low, high))
    span = (high - low).clamp_min(torch.finfo(low.dtype).eps)
    return [((z[:, channels] - low) / span).clamp(0, 1) for z in components]


def regions(components: Sequence[Tensor], count: int, seed: int) -> list[Tensor]:
    """Tokens of z (B, k, h, w) by k-means as regions 0 ... count - 1, the largest first: (B, h, w), int64."""
    from scipy.cluster.vq import kmeans2  # here, because its import takes 0.1 s of the host's start

    tokens = torch.cat([z.movedim(1, -1).flatten(0, 2) for z in components]).numpy()
    _, label = kmeans2(tokens, count, iter=ITERATIONS, minit="++", seed=seed)
    rank = np.argsort(np.argsort(-np.bincount(label, minlength=count), kind="stable"))
    label = torch.from_numpy(rank[label])
    shapes = [(z.shape[0], *z.shape[2:]) for z in components]
    parts = label.split([int(np.prod(shape)) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
