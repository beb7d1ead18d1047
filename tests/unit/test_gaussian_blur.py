"""guidance/gaussian_blur.py against a direct convolution."""

import math

import pytest
import torch

from inner_guidance.guidance.gaussian_blur import gaussian_blur
from inner_guidance.tests.support.reference_blur import reference_blur


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (5, 5), (33, 17), (64, 40)])
@pytest.mark.parametrize("sigma", [0.05, 0.7, 1.0, 3.0, 10.0])
def test_blur_is_the_reflect_padded_convolution(size, sigma):
    x = random(2, 4, *size)

    torch.testing.assert_close(gaussian_blur(x, sigma), reference_blur(x, sigma))


def test_sigma_0_is_no_blur():
    x = random(1, 4, 8, 8).float()

    assert torch.equal(gaussian_blur(x, 0.0), x)


def test_kernel_grows_with_sigma():
    impulse = torch.zeros(1, 1, 129, 129, dtype=torch.float64)
    impulse[..., 64, 64] = 1
    distance = (torch.arange(129) - 64).double()

    for sigma in (1.0, 3.0, 9.0):
        profile = gaussian_blur(impulse, sigma)[0, 0].sum(0)
        assert math.sqrt((profile * distance**2).sum()) == pytest.approx(sigma, rel=0.02)
        assert (profile > 0).sum() == 2 * math.ceil(3 * sigma) + 1


def test_video_is_blurred_frame_by_frame():
    x = random(1, 4, 3, 8, 8)

    frames = [gaussian_blur(x[:, :, i], 1.5) for i in range(3)]

    torch.testing.assert_close(gaussian_blur(x, 1.5), torch.stack(frames, dim=2))
