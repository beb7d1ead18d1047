"""guidance/hinge.py against the hinge written out, and its derivative by finite differences."""

import pytest
import torch

from inner_guidance.guidance.hinge import Level, hinge_slope


def hinge(loss, mean, deviation):
    if loss <= mean:
        return 0.0
    if loss < mean + deviation:
        return (loss - mean) ** 2 / (2 * deviation)
    return loss - mean - deviation / 2


@pytest.mark.parametrize("loss", [0.0, 0.9, 1.1, 1.25, 1.45, 1.55, 9.0])
def test_the_slope_is_the_derivative_of_the_hinge(loss):
    mean, deviation, step = 1.0, 0.5, 1e-6
    expected = (hinge(loss + step, mean, deviation) - hinge(loss - step, mean, deviation)) / (2 * step)
    level = Level(*torch.tensor([[mean], [deviation]]).double())

    slope = hinge_slope(torch.tensor([loss]).double(), level)

    torch.testing.assert_close(slope, torch.tensor([expected]).double(), rtol=1e-6, atol=1e-9)


def test_each_image_has_its_own_level_and_no_deviation_is_a_hard_hinge():
    losses = torch.tensor([1.0, 1.0, 1.0, 1.0])
    level = Level(torch.tensor([0.5, 2.0, 1.0, 0.5]), torch.tensor([1.0, 1.0, 0.0, 0.0]))

    assert hinge_slope(losses, level).tolist() == [0.5, 0.0, 0.0, 1.0]


def test_the_slope_is_a_constant_for_autograd():
    losses = torch.ones(2, requires_grad=True)

    assert not hinge_slope(losses, Level(torch.zeros(2), torch.ones(2))).requires_grad
