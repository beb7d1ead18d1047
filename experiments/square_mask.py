"""The ablation "square" of the SAG paper: a mask in the middle of the picture."""

from __future__ import annotations

import torch
from torch import Tensor


def centre_tokens(received: Tensor, generator: torch.Generator) -> Tensor:
    """Ablation "square": the map (B, ..., h, w) with its highest tokens nearest to the middle.

    Any mask keeps its area. It replaces shuffle_tokens of guidance/self_attention.py.
    """
    height, width = received.shape[-2:]
    v, u = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in (height, width)), indexing="ij")
    from_middle = torch.maximum(v.abs(), u.abs()).flatten().argsort(stable=True).to(received.device)
    highest_first = received.flatten(1).sort(dim=1, descending=True).values
    return torch.empty_like(highest_first).index_copy_(1, from_middle, highest_first).view_as(received)
