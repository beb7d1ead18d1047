"""demo/measures.py against closed forms and an independent matrix root, in float64."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from inner_guidance.demo.measures import any_of, frechet_distance, precision, psnr, recall


def samples(mean, covariance, count=400, seed=0):
    """(count, D) float64 samples whose own mean and covariance are exactly these."""
    mean, covariance = np.asarray(mean, float), np.asarray(covariance, float)
    raw = np.random.default_rng(seed).standard_normal((count, len(mean)))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw.T))).T
    return torch.from_numpy(mean + white @ np.linalg.cholesky(covariance).T)


def test_frechet_distance_of_axis_aligned_gaussians():
    """|m_x - m_y|^2 plus the squared differences of the standard deviations."""
    x = samples([1.0, -2.0, 0.5], np.diag([1.0, 4.0, 0.25]))
    y = samples([0.0, 1.0, 0.5], np.diag([9.0, 1.0, 0.25]), count=900, seed=1)
    assert frechet_distance(x, y) == pytest.approx((1 + 9 + 0) + (2**2 + 1**2 + 0), abs=1e-9)


def test_frechet_distance_where_the_covariances_do_not_commute():
    c_x = np.array([[2.0, 0.6, 0.1], [0.6, 1.0, -0.3], [0.1, -0.3, 0.5]])
    c_y = np.array([[0.7, -0.4, 0.2], [-0.4, 3.0, 0.5], [0.2, 0.5, 1.1]])
    assert np.abs(c_x @ c_y - c_y @ c_x).max() > 0.1
    expected = 4 + np.trace(c_x + c_y - 2 * scipy.linalg.sqrtm(c_x @ c_y).real)
    x, y = samples([0, 0, 0], c_x), samples([0, 2, 0], c_y, seed=1)
    assert frechet_distance(x, y) == pytest.approx(expected, abs=1e-9)
    assert frechet_distance(y, x) == pytest.approx(expected, abs=1e-9)


def test_frechet_distance_of_a_set_to_itself_is_zero_with_fewer_samples_than_features():
    x = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(x, x + 1) == pytest.approx(64, abs=1e-4)


def test_frechet_distance_does_not_lose_small_differences_of_large_features():
    x = samples([1000.0, 1000.0], np.eye(2))
    assert frechet_distance(x, x + 0.01) == pytest.approx(2e-4, rel=1e-4)


def test_psnr_is_a_mean_of_decibels_over_the_pictures():
    y = torch.full((2, 3, 4, 4), 0.5)
    x = y.clone()
    x[0] += 0.1
    x[1, 0] += 0.01 * math.sqrt(3)
    assert psnr(x, y) == pytest.approx((20 + 40) / 2, abs=1e-4)


def test_recall_and_precision_count_over_all_pictures():
    present = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    found = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0]]).bool()
    assert recall(found, present) == pytest.approx(2 / 3)
    assert precision(found, present) == pytest.approx(2 / 4)


def test_any_of_independent_events():
    probability = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert any_of(probability, 1).tolist() == pytest.approx([0.75, 1.0, 0.0])
