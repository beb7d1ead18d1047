"""Self-Attention Guidance (SAG, arXiv:2210.00939): the mathematics of one step.

    x          noisy latent                        x0         clean estimate, D(x)
    A          softmax self-attention              received   column sums of A: what each token gets
    M          mask, received > psi                x0_bar     x0, blurred inside M
    x_bar      x0_bar with the same noise as x     D(x_bar)   the model's estimate from it
    s          scale

One step: record `received_attention` while the model computes x0 = D(x), threshold it to M, `degrade` x0,
`renoise` to x_bar, evaluate the model there, and add `guidance` to the denoised result.

Latents are (B, C, *spatial, h, w); 5-D video latents are blurred frame by frame. Nothing here knows the host.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_chunks import attention_chunks
from .gaussian_blur import gaussian_blur


def received_attention(
    q: Tensor, k: Tensor, attn_mask: Tensor | None = None, softmax_scale: float | None = None
) -> Tensor:
    """The attention that each key token receives: A averaged over the heads, summed over the queries.

        received[b, j] = (n_k / n_q) sum_i mean_h softmax_j(q[b, h, i] . k[b, h, j] * softmax_scale)

    The rows of A sum to 1, so the mean over the keys is exactly 1 for every token count; n_k / n_q keeps that
    where token merging leaves fewer queries than keys.
    The arguments are those of `attention_chunks`. Returns (B, n_k), float32.
    """
    batch, heads, n_q, _ = q.shape
    n_k = k.shape[2]
    received = torch.zeros(batch, n_k, dtype=torch.float32, device=q.device)
    for rows, _, weights in attention_chunks(q, k, attn_mask, softmax_scale):
        received[rows] += weights.sum(dim=(1, 2))
    return received * (n_k / (n_q * heads))


def average_on_finest_grid(maps: Sequence[Tensor]) -> Tensor:
    """The mean of several layers' maps (B, *grid_l), resized by nearest to the finest of their grids."""
    finest = max((m.shape[1:] for m in maps), key=lambda grid: grid.numel())
    return torch.stack([resize_nearest(m, finest) for m in maps]).mean(dim=0)


def resize_nearest(token_map: Tensor, size: Sequence[int]) -> Tensor:
    """A map (B, *grid) on another grid of as many dimensions, by nearest neighbour."""
    return F.interpolate(token_map.unsqueeze(1), tuple(size), mode="nearest").squeeze(1)


def degrade(x0: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """x0_bar = M blur(x0) + (1 - M) x0 (eq. 6). mask: in [0, 1], broadcast to x0."""
    return mask * gaussian_blur(x0, sigma) + (1 - mask) * x0


def renoise(x: Tensor, x0: Tensor, x0_bar: Tensor, signal: Tensor | float) -> Tensor:
    """x_bar: x0_bar with the noise that the model predicted in x.

    x_bar = x + a_t (x0_bar - x0), a_t = signal, the coefficient of x0 in x: 1 where x = x0 + sigma e (the
    host's space for eps, v and EDM models), 1 - sigma for flow models. The paper's form
    sqrt(abar) x0_bar + sqrt(1 - abar) e is this, times the constant that scales x.
    """
    return x + signal * (x0_bar - x0)


def guidance(
    x0: Tensor, x0_bar: Tensor, d_bar: Tensor, scale: float, v_coefficient: Tensor | None = None
) -> Tensor:
    """What is added to the denoised result. d_bar = D(x_bar).

    eps space (the paper, e + s (e - e_bar)):  s (x0_bar - d_bar)
    v space (v + s (v - v_bar)):               s [(x0_bar - d_bar) - b^2 (x0_bar - x0)]

    v_coefficient: b^2 (1 - abar for variance-preserving models, sigma for flow models) chooses v space; None
    is eps space.
    """
    difference = x0_bar - d_bar
    if v_coefficient is not None:
        difference = difference - v_coefficient * (x0_bar - x0)
    return scale * difference


def shuffle_tokens(received: Tensor, generator: torch.Generator) -> Tensor:
    """Ablation "random": the map (B, *grid) with its tokens permuted, so that any mask keeps its area.

    All images of the batch share the permutation, so that each has the mask that it has alone.
    """
    flat = received.flatten(1)
    order = torch.rand(flat.shape[1], generator=generator).argsort().to(flat.device)
    return flat[:, order].view_as(received)


def high_frequency_mask(x0: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """Ablation "high frequency": the pixels that the blur changes most, as many per image as `mask` has.

    x0 (B, C, *spatial), mask (B, 1, *spatial) of zeros and ones. The paper leaves the measure open; here it
    is the squared change, summed over the channels.
    """
    change = (x0 - gaussian_blur(x0, sigma)).square().sum(dim=1, keepdim=True).flatten(1)
    rank = change.argsort(dim=1, descending=True).argsort(dim=1)
    return (rank < mask.flatten(1).sum(dim=1, keepdim=True)).to(mask.dtype).view_as(mask)
