"""The attention given to the prompt, against an explicit softmax in float64."""

import numpy as np
import pytest
import torch

from inner_guidance.guidance import attention_chunks
from inner_guidance.guidance.prompt_attention import prompt_attention


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(q, k, keys, mask=None):
    """mean_h softmax(q k^T / sqrt(d))[:, :, keys] as (B, tokens, n_q)."""
    q, k = q.double().numpy(), k.double().numpy()
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    logits = np.einsum("bhid,bhjd->bhij", q, k) / np.sqrt(q.shape[-1])
    if mask is not None:
        logits = (
            np.where(mask.numpy(), logits, -np.inf) if mask.dtype == torch.bool else logits + mask.numpy()
        )
    a = np.exp(logits - logits.max(-1, keepdims=True))
    a /= a.sum(-1, keepdims=True)
    return torch.from_numpy(a.mean(1)[:, :, keys].transpose(0, 2, 1).copy())


@pytest.mark.parametrize("chunk", [2**23, 200, 1], ids=["at once", "chunks", "query by query"])
@pytest.mark.parametrize("keys", [slice(None), slice(0, 5), slice(3, 7)], ids=str)
def test_weights_are_the_softmax(monkeypatch, chunk, keys):
    monkeypatch.setattr(attention_chunks, "CHUNK_ELEMENTS", chunk)
    q, k = 2 * noise(2, 4, 12, 8), 2 * noise(2, 4, 9, 8, seed=1)

    given = prompt_attention(q, k, keys)

    assert given.dtype == torch.float32
    torch.testing.assert_close(given.double(), reference(q, k, keys), rtol=1e-5, atol=1e-7)


def test_shared_heads_and_masks():
    q, k = 2 * noise(2, 4, 6, 8), 2 * noise(2, 2, 9, 8, seed=1)
    allowed = noise(2, 1, 6, 9, seed=2) > -0.5
    bias = noise(1, 4, 1, 9, seed=3)

    for mask in (allowed, bias):
        given = prompt_attention(q, k, slice(0, 4), mask)
        torch.testing.assert_close(given.double(), reference(q, k, slice(0, 4), mask), rtol=1e-5, atol=1e-7)


def test_the_weights_of_a_token_sum_to_1_over_all_keys():
    given = prompt_attention(noise(1, 2, 6, 8).half(), noise(1, 2, 77, 8, seed=1).half(), slice(None))

    torch.testing.assert_close(given.sum(dim=1), torch.ones(1, 6), rtol=0, atol=1e-5)


def test_another_scale():
    q, k = noise(1, 2, 6, 8), noise(1, 2, 5, 8, seed=1)

    torch.testing.assert_close(
        prompt_attention(q * 8**-0.5, k, slice(None), softmax_scale=1.0), prompt_attention(q, k, slice(None))
    )
