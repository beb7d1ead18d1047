"""The attention that the tokens of an image give to the tokens of the prompt, where A is never held whole."""

import torch
from torch import Tensor

from .self_attention import CHUNK_ELEMENTS


def prompt_attention(
    q: Tensor, k: Tensor, keys: slice, attn_mask: Tensor | None = None, softmax_scale: float | None = None
) -> Tensor:
    """The columns of A that belong to the prompt, averaged over the heads: mean_h A[b, h, i, j].

    A = softmax_j(q[b, h, i] . k[b, h, j] * softmax_scale) over all keys j; `keys` are the prompt's. Where
    there are no others, as in a UNet, the weights of an image token i sum to 1.

    q (B, H, n_q, d), k (B, H_k, n_k, d) with H a multiple of H_k. attn_mask as for scaled dot-product
    attention: boolean, or added to the logits; broadcast to (B, H, n_q, n_k). softmax_scale: None is d^-1/2.
    Returns (B, tokens of the prompt, n_q), float32. The softmax is float32, in chunks of queries of
    CHUNK_ELEMENTS logits.
    """
    batch, heads, n_q, d = q.shape
    n_k = k.shape[2]
    if k.shape[1] != heads:
        k = k.repeat_interleave(heads // k.shape[1], dim=1)
    k = k.transpose(2, 3)
    scale = d**-0.5 if softmax_scale is None else softmax_scale
    queries = max(1, CHUNK_ELEMENTS // (batch * heads * n_k))
    if attn_mask is not None:
        attn_mask = attn_mask.expand(batch, heads, n_q, n_k)

    given = []
    for i in range(0, n_q, queries):
        logits = ((q[:, :, i : i + queries] * scale) @ k).float()
        if attn_mask is not None:
            part = attn_mask[:, :, i : i + queries]
            logits = logits.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else logits + part
        given.append(logits.softmax(dim=-1)[..., keys].mean(dim=1).transpose(1, 2))
    return torch.cat(given, dim=2)
