"""Figures of a set of pictures against a set of renders, from features (N, D) and (M, D)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

NEIGHBOURS = 3
"""k of precision and recall."""


class FrechetTerms(NamedTuple):
    """The two terms of a Frechet distance."""

    means: float
    """|m_x - m_y|^2."""
    covariances: float
    """tr(C_x + C_y - 2 (C_x C_y)^(1/2))."""


def frechet_to(reference: Tensor) -> Callable[[Tensor], FrechetTerms]:
    """The Frechet distance of features to a reference (M, D), whose root is computed once; float64."""
    y = reference.double()
    m_y, c_y = y.mean(0), y.T.cov()
    values, vectors = torch.linalg.eigh(c_y)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T

    def terms(features: Tensor) -> FrechetTerms:
        x = features.double()
        c_x = x.T.cov()
        cross = torch.linalg.eigvalsh(root @ c_x @ root).clamp(min=0).sqrt().sum()
        means = (x.mean(0) - m_y).square().sum()
        return FrechetTerms(means.item(), (c_x.trace() + c_y.trace() - 2 * cross).item())

    return terms


def nearest(features: Tensor, reference: Tensor) -> Tensor:
    """Distance (N,) of each picture to the nearest of the reference."""
    return torch.cdist(features, reference).amin(1)


def inside_manifold(features: Tensor, others: Tensor) -> Tensor:
    """Which features (N,) lie in the manifold of others (M, D), Kynkaanniemi et al. 2019 (arXiv:1904.06991).

    The manifold is the union of balls around the others, each as wide as the distance to its k-th nearest
    other. The mean of inside_manifold(drawn, renders) is precision, that of (renders, drawn) is recall.
    """
    radius = torch.cdist(others, others).kthvalue(NEIGHBOURS + 1, dim=1).values  # the first is itself
    return (torch.cdist(features, others) <= radius).any(1)


def diversity_of(features: Tensor) -> Callable[[Tensor], float]:
    """The mean distance of two different pictures, like pairwise LPIPS; of pictures by their numbers."""
    distances = torch.cdist(features.double(), features.double())

    def diversity(chosen: Tensor) -> float:
        count = len(chosen)
        return distances[chosen][:, chosen].sum().item() / (count * (count - 1))

    return diversity


def detail(pictures: Tensor) -> Tensor:
    """RMS of the Laplacian of luminance, (N,), of pictures (N, H, W, 3) in uint8: high for sharp edges."""
    y = pictures.float() @ torch.tensor([0.299, 0.587, 0.114]) / 255
    inner = y[:, 1:-1, 1:-1]
    around = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:]
    return (around - 4 * inner).square().mean((1, 2)).sqrt()


def effective_scale(guided: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
    """w_e = <D - D_u, D_c - D_u> / |D_c - D_u|^2, (B,), of denoised results (B, S, ...) at S steps.

    The CFG scale at which plain CFG goes as far along its own direction as the guided result does: the
    effective guidance strength of GA-Eval (arXiv:2602.22570). Plain CFG has its own scale.
    """
    direction = (cond - uncond).flatten(1)
    return ((guided - uncond).flatten(1) * direction).sum(1) / direction.square().sum(1)
