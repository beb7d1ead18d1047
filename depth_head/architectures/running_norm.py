"""Batch normalisation by running statistics, for batches of few images.

Plain BatchNorm divides by the statistics of the batch. With few images, that erases what distinguishes an
image from the others, such as its mean depth. Here training divides by the running statistics too, and treats
them as constants. docs/derivations.md has the figures.
"""

import torch
from torch import Tensor, nn

EPSILON = 1e-5


class RunningNorm(nn.Module):
    """(B, C, h, w), normalised per channel over everything seen so far, then scaled and shifted if affine.

    The running statistics are those of all pixels of all batches, so the variance includes the differences
    between the means of batches. They are plain averages for the first 1 / momentum batches, then exponential
    ones.
    """

    running_mean: Tensor
    running_var: Tensor
    batches: Tensor

    def __init__(self, channels: int, affine: bool = True, momentum: float = 0.01) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """In training, update the statistics with x first, so the first batch is normalised by its own."""
        if self.training:
            self.update(x.detach())
        scale = (self.running_var + EPSILON).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -self.running_mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Update the running mean and variance with those of a batch."""
        var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        self.batches += 1
        share = max(self.momentum, 1 / int(self.batches))
        difference = mean - self.running_mean
        self.running_mean += share * difference
        self.running_var.copy_((1 - share) * (self.running_var + share * difference.square()) + share * var)
