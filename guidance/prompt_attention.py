"""The attention that the tokens of an image give to the tokens of the prompt."""

import torch
from torch import Tensor

from .attention_chunks import attention_chunks


def prompt_attention(
    q: Tensor, k: Tensor, keys: slice, attn_mask: Tensor | None = None, softmax_scale: float | None = None
) -> Tensor:
    """The columns of A that belong to the prompt, averaged over the heads: mean_h A[b, h, i, j].

    keys: the prompt's tokens among the keys. Where there are no others, as in a UNet, the weights of an image
    token i sum to 1. The other arguments are those of `attention_chunks`.
    Returns (B, tokens of the prompt, n_q), float32.
    """
    tokens = len(range(*keys.indices(k.shape[2])))
    given = torch.empty(q.shape[0], tokens, q.shape[2], dtype=torch.float32, device=q.device)
    for rows, queries, weights in attention_chunks(q, k, attn_mask, softmax_scale):
        given[rows, :, queries] = weights[..., keys].mean(dim=1).transpose(1, 2)
    return given
