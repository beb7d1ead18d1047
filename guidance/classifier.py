"""Classifier guidance (arXiv:2105.05233) for a model's denoised estimate, and with SAG (arXiv:2210.00939).

    x = a x0 + c n                         the noisy latent; a = 1, c = sigma for eps, v and EDM
    D(x) = (x + c^2 grad log p(x)) / a     the denoised estimate (Tweedie)
    D'(x) = D(x) + s c^2 / a grad_x log p(y | x)

The gradient is taken at the original x: SAG's degraded x_bar never meets the classifier. That this is the
paper's shift of the mean, Sigma s grad log p(y | x_t), is derived in docs/derivations.md.
"""

import torch
from torch import Tensor

# a / c below which x counts as noise alone. A schedule with zero terminal SNR begins at 2e-4 in the host, and
# c^2 / a times the rest of a gradient would be all that the first step leaves.
NOISE_ALONE = 1e-3


def log_probability(logits: Tensor, label: int) -> Tensor:
    """The log p(y | x) of a class by its number: (B, classes) -> (B,)."""
    return logits.float().log_softmax(dim=1)[:, label]


def classifier_shift(gradient: Tensor, signal: Tensor, noise: Tensor, scale: float) -> Tensor:
    """The shift of the denoised estimate, s c^2 / a grad_x log p(y | x); 0 where x is noise alone.

    gradient (B, C, *spatial), with respect to x; signal a and noise c, (B, 1, ...), as coefficients of x.
    """
    factor = scale * noise.square() / signal.clamp_min(torch.finfo(signal.dtype).tiny)
    return torch.where(signal > NOISE_ALONE * noise, factor * gradient, 0)
