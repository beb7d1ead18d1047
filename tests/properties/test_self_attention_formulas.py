"""SAG's formulas for every shape and precision of a latent, up to one pixel."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from inner_guidance.guidance import self_attention as sag

LATENTS = st.tuples(st.integers(1, 3), st.just(4), *[st.integers(1, 9)] * 2)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
SEED = st.integers(0, 2**16)


def normal(*shape, seed, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(
    shape=LATENTS,
    frames=st.integers(0, 2),
    dtype=DTYPES,
    blur_sigma=st.floats(0, 10),
    seed=SEED,
    v=st.booleans(),
)
def test_guidance_is_finite_and_a_latent_like_the_given_one(shape, frames, dtype, blur_sigma, seed, v):
    if frames:
        shape = (*shape[:2], frames, *shape[2:])
    x0, d_bar = (normal(*shape, seed=seed + i, dtype=dtype) for i in range(2))
    mask = (normal(*x0[:, :1].shape, seed=seed + 2) > 0).to(dtype)
    share = torch.full((shape[0], *[1] * (x0.ndim - 1)), 0.5, dtype=dtype) if v else None

    x0_bar = sag.degrade(x0, mask, blur_sigma)
    found = sag.guidance(x0, x0_bar, d_bar, 0.75, share)

    for t in (x0_bar, found):
        assert t.shape == x0.shape
        assert t.dtype == dtype
        assert t.isfinite().all()
    assert sag.guidance(x0, x0_bar, d_bar, 0.0, share).abs().max() == 0
    assert torch.equal(sag.degrade(x0, torch.zeros_like(mask), blur_sigma), x0)
    assert sag.high_frequency_mask(x0, mask, blur_sigma).sum() == mask.sum()
    alone = sag.degrade(x0[:1], mask[:1], blur_sigma)
    torch.testing.assert_close(alone, x0_bar[:1], rtol=1e-2, atol=1e-2)


@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    queries=st.integers(1, 12),
    keys=st.integers(1, 12),
    dtype=DTYPES,
    gain=st.sampled_from([0.0, 1.0, 30.0]),
    seed=SEED,
)
def test_the_attention_received_is_finite_with_a_mean_of_1(batch, heads, queries, keys, dtype, gain, seed):
    q, k = (gain * normal(batch, heads, n, 8, seed=seed + n, dtype=dtype) for n in (queries, keys))

    received = sag.received_attention(q, k)

    assert received.shape == (batch, keys)
    assert received.dtype == torch.float32
    torch.testing.assert_close(received.mean(dim=1), torch.ones(batch), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sag.received_attention(q[:1], k[:1]), received[:1], rtol=1e-3, atol=1e-3)
