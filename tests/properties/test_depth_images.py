"""Depth maps, whatever is wired: numbers in [0, 1] or one sentence; a batch of targets equals its singles."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from inner_guidance.depth_head.depth_maps import centre_crop, read_depth_maps, read_target_depth
from inner_guidance.guidance import depth_aware as dag
from inner_guidance.guidance.hinge import Level

SIDE = st.integers(1, 9)
SEED = st.integers(0, 2**16)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8])


def random(*shape, seed):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@given(
    count=st.integers(0, 3),
    height=SIDE,
    width=SIDE,
    channels=st.integers(1, 4),
    dtype=DTYPES,
    scale=st.sampled_from([0.0, 1e-6, 1.0, 255.0, 1e30, -5.0]),
    spoilt=st.sampled_from([None, torch.nan, torch.inf]),
    seed=SEED,
)
def test_any_image_is_read_or_refused(count, height, width, channels, dtype, scale, spoilt, seed):
    images = (scale * random(count, height, width, channels, seed=seed)).to(dtype)
    if spoilt is not None and dtype.is_floating_point and images.numel():
        images[0, 0, 0, 0] = spoilt
    try:
        maps = read_target_depth(images, "depths")
    except ValueError as error:
        assert str(error).startswith("depths")
        return
    assert maps.shape == (count, 1, height, width)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert maps.min() == 0
    assert maps.max() == 1
    assert torch.equal(maps, read_target_depth(images.clone(), "depths"))
    for i in range(count):
        assert torch.equal(read_target_depth(images[i : i + 1], "depths"), maps[i : i + 1])
    assert read_depth_maps(images, "depths").min() >= 0


@given(height=SIDE, width=SIDE, to_height=SIDE, to_width=SIDE)
def test_a_crop_is_never_empty(height, width, to_height, to_width):
    cropped = centre_crop(torch.zeros(1, 1, height, width), to_height, to_width)

    assert 0 < cropped.shape[-2] <= height
    assert 0 < cropped.shape[-1] <= width


@given(
    count=st.integers(1, 3),
    height=SIDE,
    width=SIDE,
    flat=st.sampled_from([None, 0.0, 0.5, 1.0]),
    mask=st.sampled_from(["none", "empty", "full", "random"]),
    strengths=st.lists(st.sampled_from([0.0, 1e-6, 1.0, 10.0]), min_size=2, max_size=2),
    normalise=st.booleans(),
    calibrated=st.booleans(),
    seed=SEED,
)
@torch.inference_mode(False)
def test_what_losses_ask_of_depth_maps_is_finite_and_an_images_own(
    count, height, width, flat, mask, strengths, normalise, calibrated, seed
):
    d_strong, d_weak, target = random(3, count, 1, height, width, seed=seed)
    if flat is not None:
        d_strong = torch.full_like(d_strong, flat)
    masks = {"none": None, "empty": torch.zeros_like(target), "full": torch.ones_like(target)}
    masked = random(count, 1, height, width, seed=seed + 1) if mask == "random" else masks[mask]

    def asked(rows):
        of_target = None if masked is None else masked[rows]
        some = torch.ones_like(d_strong[rows][:, 0, 0, 0])
        terms = [
            dag.Term(
                strengths[0], dag.consistency_loss, Level(0.1 * some, 0.1 * some) if calibrated else None
            ),
            dag.Term(strengths[1], lambda strong, _: dag.target_loss(strong, target[rows], of_target)),
        ]
        return dag.pull(d_strong[rows], d_weak[rows], terms, normalise)

    together = asked(slice(None))

    for t in (*together, *together.cotangents(256.0)):
        assert t.isfinite().all()
    assert together.strong.shape == d_strong.shape
    if not any(strengths):
        assert together.strong.abs().max() == 0 == together.weak.abs().max()
    for i in range(count):
        alone = asked(slice(i, i + 1))
        torch.testing.assert_close(together.strong[i : i + 1], alone.strong, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(together.weak[i : i + 1], alone.weak, rtol=1e-3, atol=1e-5)
