"""depth_head/metrics.py against float64 references that go pixel by pixel, and against the demo world."""

import numpy as np
import pytest
import torch

from inner_guidance.demo.ray_casting import render
from inner_guidance.demo.scenes import sample_scene
from inner_guidance.depth_head.metrics import (
    DepthMetrics,
    DepthRange,
    average,
    fit_to_label,
    measure,
    normalise,
)

RANGE = DepthRange(near=1.5, far=12.0)


def maps(seed, batch=3, size=(5, 7)):
    return torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(seed))


def reference(depth, label, near, far):
    """AbsRel, RMSE and delta1, one pixel after the other."""
    images = []
    for image, goal in zip(
        depth.double().flatten(1).tolist(), label.double().flatten(1).tolist(), strict=True
    ):
        rel, squares, hits = [], [], []
        for r, s in zip(image, goal, strict=True):
            z, t = 1 / (1 / far + r * (1 / near - 1 / far)), 1 / (1 / far + s * (1 / near - 1 / far))
            rel.append(abs(z - t) / t)
            squares.append((z - t) ** 2)
            hits.append(z / t < 1.25 and t / z < 1.25)
        images.append((np.mean(rel), np.sqrt(np.mean(squares)), np.mean(hits)))
    return np.mean(images, axis=0)


def test_figures_are_the_formulas():
    depth, label = maps(0), maps(1)
    ours = measure(depth, label, RANGE)
    assert (ours.abs_rel, ours.rmse, ours.delta1) == pytest.approx(reference(depth, label, 1.5, 12), rel=1e-9)


def test_a_perfect_estimate():
    label = maps(0)
    assert measure(label, label, RANGE) == DepthMetrics(abs_rel=0.0, rmse=0.0, delta1=1.0)


def test_one_image_off_by_a_known_factor():
    """Everything at 4 m, estimated at 5.2 m: 30 % off, beyond delta1; at 4.8 m within it."""
    label = RANGE.relative(torch.full((1, 1, 2, 2), 4.0))
    assert measure(RANGE.relative(torch.full((1, 1, 2, 2), 5.2)), label, RANGE).abs_rel == pytest.approx(0.3)
    far_off = measure(RANGE.relative(torch.full((1, 1, 2, 2), 5.2)), label, RANGE)
    close = measure(RANGE.relative(torch.full((1, 1, 2, 2), 4.8)), label, RANGE)
    assert (far_off.rmse, far_off.delta1) == pytest.approx((1.2, 0.0), abs=1e-5)
    assert (close.rmse, close.delta1) == pytest.approx((0.8, 1.0), abs=1e-5)


def test_metres_and_back():
    metres = torch.tensor([1.5, 2.0, 4.0, 12.0]).view(1, 1, 2, 2)
    relative = RANGE.relative(metres)
    assert relative.flatten()[[0, 3]].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert relative.flatten()[1].item() == pytest.approx((1 / 2 - 1 / 12) / (1 / 1.5 - 1 / 12))
    torch.testing.assert_close(RANGE.metres(relative), metres)


def test_beyond_the_range_is_its_end():
    assert RANGE.relative(torch.tensor([0.5, 1e9])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(("near", "far"), [(0, 1), (2, 2), (3, 1), (float("nan"), 1)])
def test_a_range_that_is_none_is_refused(near, far):
    with pytest.raises(ValueError, match="must be above 0 and below far"):
        DepthRange(near, far)


def test_alignment_is_least_squares():
    depth, label = maps(0), maps(1)
    for image, goal, aligned in zip(depth, label, fit_to_label(depth, label), strict=True):
        design = np.stack([image.double().flatten().numpy(), np.ones(35)], axis=1)
        solution, *_ = np.linalg.lstsq(design, goal.double().flatten().numpy(), rcond=None)
        assert aligned.flatten().tolist() == pytest.approx((design @ solution).tolist(), abs=1e-5)


def test_alignment_undoes_scale_and_shift():
    label = maps(0)
    change = torch.tensor([0.3, 2.0, -0.5]).view(3, 1, 1, 1), torch.tensor([0.1, -1.0, 0.7]).view(3, 1, 1, 1)
    torch.testing.assert_close(
        fit_to_label(label * change[0] + change[1], label), label, rtol=1e-4, atol=1e-5
    )
    assert measure(0.5 * label + 0.1, label, RANGE, aligned=True).abs_rel < 1e-5
    assert measure(0.5 * label + 0.1, label, RANGE).abs_rel > 0.1


def test_what_an_alignment_moves_beyond_the_range_is_its_end():
    label = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 1, 2, 2)
    depth = torch.tensor([0.0, 0.2, 0.8, 1.0]).view(1, 1, 2, 2)
    slope = 0.8 / 2 / (0.68 / 2)  # least squares: the sums of products and of squares about 0.5
    aligned = (0.5 + slope * (depth - 0.5)).clamp(0, 1)
    assert (aligned[0, 0, 0, 0], aligned[0, 0, 1, 1]) == (0, 1)

    ours = measure(depth, label, RANGE, aligned=True)

    expected = reference(aligned, label, 1.5, 12)
    assert (ours.abs_rel, ours.rmse, ours.delta1) == pytest.approx(expected, rel=1e-5)


def test_an_estimate_with_little_contrast_is_not_flat():
    label = torch.rand(1, 1, 5, 7, generator=torch.Generator().manual_seed(0))

    aligned = fit_to_label(0.5 + 0.002 * label, label)

    torch.testing.assert_close(aligned, label, rtol=0, atol=1e-3)


def test_a_flat_estimate_aligns_to_the_mean_with_a_finite_gradient():
    depth = torch.full((1, 1, 4, 4), 0.3, requires_grad=True)
    label = maps(0, batch=1, size=(4, 4))
    aligned = fit_to_label(depth, label)
    torch.testing.assert_close(aligned, label.mean().expand_as(aligned))
    (aligned - label).abs().sum().backward()
    assert depth.grad.isfinite().all()


def test_normalise_stretches_every_image():
    inverse = torch.stack([maps(0, 1)[0] * 3 + 5, torch.full((1, 5, 7), 2.0)])
    stretched, flat = normalise(inverse)
    assert (stretched.min().item(), stretched.max().item()) == (0.0, 1.0)
    torch.testing.assert_close(
        stretched, (inverse[0] - inverse[0].min()) / (inverse[0].max() - inverse[0].min())
    )
    assert torch.equal(flat, torch.zeros(1, 5, 7))


def test_average_is_the_mean_of_equal_batches():
    depth, label = maps(0, 4), maps(1, 4)
    halves = [measure(depth[i : i + 2], label[i : i + 2], RANGE) for i in (0, 2)]
    whole = measure(depth, label, RANGE)
    mean = average(halves)
    assert (mean.abs_rel, mean.rmse, mean.delta1) == pytest.approx((whole.abs_rel, whole.rmse, whole.delta1))


def test_the_depth_of_a_render_survives_the_convention():
    depth = render(sample_scene(3), size=64).depth[None, None]
    assert measure(RANGE.relative(depth), RANGE.relative(depth), RANGE).abs_rel == 0
    torch.testing.assert_close(RANGE.metres(RANGE.relative(depth)), depth, rtol=1e-4, atol=1e-4)
