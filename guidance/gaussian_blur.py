"""Gaussian blur of depth maps and latents."""

import torch
from torch import Tensor

# The blur below which the weight of a neighbour, exp(-1 / 2 sigma^2), is 0 in any precision.
NARROWEST = 0.01


def gaussian_kernel_matrix(n: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Gaussian blur of n samples with reflect padding, as a matrix (n, n): blurred = matrix @ samples.

    The kernel is odd and about 6 sigma long, and cut to the n samples: radius min(ceil(3 sigma), n - 1), the
    longest that reflection (..., 2, 1, 0, 1, 2, ...) is defined for. One sample stays as it is.
    """
    radius = min(int(-(-3 * sigma // 1)), n - 1)
    offset = torch.arange(-radius, radius + 1, device=device)
    weight = torch.exp(-0.5 * (offset.to(dtype) / sigma) ** 2)
    weight = weight / weight.sum()
    source = (torch.arange(n, device=device)[:, None] + offset).abs()
    source = (n - 1) - ((n - 1) - source).abs()
    return torch.zeros(n, n, device=device, dtype=dtype).scatter_add_(1, source, weight.expand(n, -1))


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Blur of x (..., h, w) over h and w. sigma in cells; 0 is no blur."""
    if sigma < NARROWEST:
        return x
    vertical = gaussian_kernel_matrix(x.shape[-2], sigma, x.device, x.dtype)
    horizontal = gaussian_kernel_matrix(x.shape[-1], sigma, x.device, x.dtype)
    return vertical @ x @ horizontal.T
