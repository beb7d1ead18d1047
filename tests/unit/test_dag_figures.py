"""experiments/dag_figures.py: planes of renders, alignment, objects, against references."""

import numpy as np
import pytest
import torch

from inner_guidance.demo.depth_judge import GRID, SURFACES, depth_label
from inner_guidance.demo.ray_casting import FIRST_SOLID, render
from inner_guidance.demo.renders import HELD_OUT
from inner_guidance.demo.scenes import FAR, NEAR, sample_scene
from inner_guidance.demo.train_depth_judge import MIXED, surface_label
from inner_guidance.experiments import dag_figures
from inner_guidance.experiments.dag_figures import (
    abs_rel_after_alignment,
    depth_features,
    distance_after_alignment,
    fidelity,
    planarity,
    warp,
)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def seen():
    """True depth (4, 1, GRID, GRID) and surfaces, as a faultless judge would put them out."""
    renders = [render(sample_scene(HELD_OUT + 30_000 + i), size=2 * GRID) for i in range(4)]
    depth = torch.stack([depth_label(one.depth) for one in renders])
    labels = torch.stack([surface_label(one.surface) for one in renders])
    surfaces = torch.zeros(4, SURFACES, GRID, GRID)
    for number in range(SURFACES):
        surfaces[:, number][labels == number] = 20.0
    assert (labels == MIXED).any()
    return depth, surfaces, labels


def test_planes_of_the_demo_world_are_planar(seen):
    depth, surfaces, _ = seen

    assert planarity(depth, surfaces).max() < 1e-6


def test_planarity_is_the_residual_of_least_squares(seen):
    depth, surfaces, labels = seen
    bumpy = depth + 0.05 * random(4, 1, GRID, GRID)

    found = planarity(bumpy, surfaces)

    for i in range(4):
        residuals = []
        for number in range(FIRST_SOLID):
            on = (labels[i] == number).numpy()
            padded = np.pad(on, 1, constant_values=True)
            inner = np.all(
                [
                    padded[1 + dy : 1 + dy + GRID, 1 + dx : 1 + dx + GRID]
                    for dy in (-1, 0, 1)
                    for dx in (-1, 0, 1)
                ],
                axis=0,
            )
            if inner.sum() < dag_figures.LEAST_CELLS:
                continue
            y, x = inner.nonzero()
            a = np.stack([np.ones(len(x)), x, y], 1)
            b = bumpy[i, 0].double().numpy()[inner]
            residuals.append(b - a @ np.linalg.lstsq(a, b, rcond=None)[0])
        assert found[i].item() == pytest.approx(np.sqrt((np.concatenate(residuals) ** 2).mean()), rel=1e-6)


def test_planarity_of_a_picture_without_planes():
    surfaces = torch.zeros(1, SURFACES, GRID, GRID)
    surfaces[:, FIRST_SOLID] = 20.0

    assert planarity(random(1, 1, GRID, GRID), surfaces).isnan().all()


def test_depth_features_are_area_averages():
    depth = random(2, 1, 32, 32)

    found = depth_features(depth, 8)

    assert found.shape == (2, 64)
    assert torch.allclose(found[1, 8 * 3 + 5], depth[1, 0, 12:16, 20:24].mean())


def test_distance_after_alignment():
    truth, noise = random(3, 1, 8, 8), random(3, 1, 8, 8, seed=1)
    estimate = 0.3 * truth - 0.1 + 0.02 * noise

    found = distance_after_alignment(estimate, truth)

    for i in range(3):
        x, y = estimate[i].double().numpy().ravel(), truth[i].double().numpy().ravel()
        assert found[i].item() == pytest.approx(
            np.abs(np.polyval(np.polyfit(x, y, 1), x) - y).mean(), rel=1e-4
        )


def test_abs_rel_after_alignment_is_in_metres():
    truth = random(2, 1, 8, 8) * 0.5 + 0.2
    off = truth.clone()
    off[:, :, :4] += 0.05
    off[:, :, 4:] -= 0.05

    found = abs_rel_after_alignment(off, truth, NEAR, FAR)

    assert abs_rel_after_alignment(0.5 * truth + 0.1, truth, NEAR, FAR).max() < 1e-5
    for i in range(2):
        x, y = off[i].double().numpy().ravel(), truth[i].double().numpy().ravel()
        fitted = np.polyval(np.polyfit(x, y, 1), x)
        z, expected = (1 / (r / NEAR + (1 - r) / FAR) for r in (fitted, y))
        assert found[i].item() == pytest.approx((np.abs(z - expected) / expected).mean(), rel=1e-4)


def test_warp_moves_by_its_strength_and_keeps_what_is_everywhere():
    flat = torch.full((2, 32, 32, 3), 77, dtype=torch.uint8)
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8).expand(40, 64, 64)[..., None].expand(-1, -1, -1, 3)

    moved = (warp(ramp, 0.02, seed=0).float() - ramp.float()).abs() / 4 / 64  # in sides, along one axis

    assert (warp(flat, 0.05, seed=0) == flat).all()
    assert torch.equal(warp(ramp, 0.02, seed=0), warp(ramp, 0.02, seed=0))
    # The mean along one axis is 2 / pi of the mean length; the reflected border takes some of it.
    assert 0.8 < moved.mean() / (0.02 * 2 / torch.pi) < 1.1


def test_fidelity_of_right_half_right_and_wrong_pictures():
    objects = torch.tensor([[0.9, 0.8, 0.1], [0.9, 0.2, 0.1], [0.1, 0.1, 0.9]])
    present = torch.tensor([[1.0, 1.0, 0.0]]).expand(3, -1)

    main, found = fidelity(objects, present, torch.tensor([0, 1, 0]))

    assert main.tolist() == [1, 0, 0]
    assert found.tolist() == [1, 0.5, 0]
