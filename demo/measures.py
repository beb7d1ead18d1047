"""The figures of demo/evaluate.py, as functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) of two feature sets (N, D) and (M, D), in float64.

    m are means and C covariances (Heusel et al. 2017). C_x C_y has the eigenvalues of the symmetric
    C_x^(1/2) C_y C_x^(1/2), so the trace of its root also exists when there are fewer samples than features.
    """
    x, y = x.double(), y.double()
    c_x, c_y = torch.atleast_2d(x.T.cov()), torch.atleast_2d(y.T.cov())
    values, vectors = torch.linalg.eigh(c_x)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ c_y @ root).clamp(min=0).sqrt().sum()
    return ((x.mean(0) - y.mean(0)).square().sum() + c_x.trace() + c_y.trace() - 2 * cross).item()


def psnr(x: Tensor, y: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures (N, ...) in [0, 1], the mean over the pictures."""
    error = (x - y).double().square().flatten(1).mean(1)
    return (-10 * error.log10()).mean().item()


def recall(found: Tensor, present: Tensor) -> float:
    """Share of the present classes that are found, over all pictures. Both (N, classes), bool."""
    return ((found & present).sum() / present.sum()).item()


def precision(found: Tensor, present: Tensor) -> float:
    """Share of the found classes that are present, over all pictures. Both (N, classes), bool."""
    return recall(present, found)


def any_of(probability: Tensor, dim: int) -> Tensor:
    """Probability that at least one of independent events along `dim` happens: 1 - prod(1 - p)."""
    return 1 - (1 - probability).prod(dim)
