"""pictures/colour_map.py: lightness measured by CIE L*, which knows nothing of OKLab."""

import numpy as np
import pytest
import torch

from inner_guidance.pictures.colour_map import COLOUR_MAPS, colours, oklab_to_srgb

STEPS = torch.linspace(0, 1, 257, dtype=torch.float64)


def cie_lab(srgb):
    """CIE L*a*b* of sRGB colours (N, 3) under D65: IEC 61966-2-1, then CIE 15."""
    srgb = srgb.numpy()
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array(
        [
            [0.4124564, 0.2126729, 0.0193339],
            [0.3575761, 0.7151522, 0.119192],
            [0.1804375, 0.0721750, 0.9503041],
        ]
    )
    ratio = xyz / [0.95047, 1.0, 1.08883]
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def test_conversion_agrees_with_the_published_colours():
    """sRGB primaries in OKLab, from Ottosson's article and CSS Color 4."""
    lab = torch.tensor(
        [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.62796, 0.22486, 0.12585], [0.45201, -0.03246, -0.31153]],
        dtype=torch.float64,
    )

    rgb = oklab_to_srgb(lab)

    wanted = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(rgb, wanted, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", COLOUR_MAPS)
class TestEveryMap:
    def test_gets_lighter_in_nearly_equal_steps(self, name):
        lightness = cie_lab(colours(STEPS, COLOUR_MAPS[name]))[:, 0]
        step = np.diff(lightness)

        assert (step > 0).all()
        assert step.max() / step.min() < 2
        assert lightness[0] < 5
        assert lightness[-1] > 94

    def test_is_as_uniform_in_all_three_dimensions(self, name):
        lab = cie_lab(colours(STEPS, COLOUR_MAPS[name]))
        distance = np.linalg.norm(np.diff(lab, axis=0), axis=1)

        assert distance.max() / distance.min() < 2

    def test_stays_inside_the_gamut(self, name):
        rgb = colours(STEPS, COLOUR_MAPS[name])
        inside = (rgb > 0) & (rgb < 1)

        # A channel that were clipped would stand still at 0 or 1.
        assert inside[1:-1].all()

    def test_values_beyond_the_ends_are_the_ends(self, name):
        shown = colours(torch.tensor([-1.0, 0.0, 1.0, 7.0]), COLOUR_MAPS[name])

        assert torch.equal(shown[0], shown[1])
        assert torch.equal(shown[2], shown[3])


def test_colours_keep_the_shape():
    assert colours(torch.rand(2, 5, 7), COLOUR_MAPS["ember"]).shape == (2, 5, 7, 3)
