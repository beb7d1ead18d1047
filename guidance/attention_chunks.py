"""Softmax attention in chunks, so that the matrix A (queries, keys) is never held whole."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Logits held at once: 32 MiB in float32, whatever the resolution.
CHUNK_ELEMENTS = 2**23


def attention_chunks(
    q: Tensor, k: Tensor, attn_mask: Tensor | None = None, softmax_scale: float | None = None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """A[b, h, i, j] = softmax_j(q[b, h, i] . k[b, h, j] * softmax_scale), part by part.

    q (B, H, n_q, d), k (B, H_k, n_k, d) with H a multiple of H_k. attn_mask as for scaled dot-product
    attention: boolean, or added to the logits; broadcast to (B, H, n_q, n_k). softmax_scale: None is d^-1/2.
    Yields slices of the batch and of the queries, and A there: (rows, H, queries, n_k), float32.
    """
    batch, heads, n_q, d = q.shape
    n_k = k.shape[2]
    if k.shape[1] != heads:
        k = k.repeat_interleave(heads // k.shape[1], dim=1)
    k = k.transpose(2, 3)
    scale = d**-0.5 if softmax_scale is None else softmax_scale
    row_count = max(1, CHUNK_ELEMENTS // (heads * n_q * n_k))
    query_count = max(1, CHUNK_ELEMENTS // (heads * n_k))
    if attn_mask is not None:
        attn_mask = attn_mask.expand(batch, heads, n_q, n_k)

    for row in range(0, batch, row_count):
        rows = slice(row, row + row_count)
        for query in range(0, n_q, query_count):
            queries = slice(query, query + query_count)
            logits = ((q[rows, :, queries] * scale) @ k[rows]).float()
            if attn_mask is not None:
                part = attn_mask[rows, :, queries]
                logits = logits.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else logits + part
            yield rows, queries, logits.softmax(dim=-1)
