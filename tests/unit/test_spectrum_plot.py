"""pictures/spectrum_plot.py: the curves stand where their numbers say."""

import math

import pytest
import torch
from PIL import ImageDraw

from inner_guidance.guidance.attention_spectrum import Curve, Spectrum
from inner_guidance.pictures.captions import to_bytes
from inner_guidance.pictures.spectrum_plot import WIDTH, curve_colours, limits, panel, percent_more, plot


def spectrum(size, inside, everywhere=-2.0, patches=5):
    rings = size // 2 + 1
    return Spectrum(
        size,
        Curve(9, [0.0] + [everywhere] * (rings - 1)),
        {psi: Curve(patches, [0.0] + [value] * (rings - 1)) for psi, value in inside.items()},
    )


def rows_of(picture, colour):
    """The rows in which a colour stands, unmixed."""
    return (
        (torch.from_numpy(to_bytes(picture)) == torch.tensor(colour))
        .all(dim=-1)
        .any(dim=1)
        .nonzero()
        .flatten()
    )


def test_what_is_larger_inside_stands_higher():
    psis = curve_colours(2)

    picture = plot([spectrum(8, {1.0: -1.5, 1.3: -1.0}), spectrum(16, {1.0: -1.5, 1.3: -1.0})], [])

    assert picture.shape[1:] == (WIDTH, 3)
    legend, panels = 60, picture[60:]
    lower, higher = (rows_of(panels, colour) + legend for colour in psis)
    assert higher.min() < lower.min()
    assert higher.max() < lower.max()


def test_pillow_before_10_4_draws_it(monkeypatch):
    """The host asks for no version."""
    spectra = [spectrum(8, {1.0: -1.5})]
    today = plot(spectra, [])

    monkeypatch.delattr(ImageDraw.ImageDraw, "circle", raising=False)

    assert torch.equal(plot(spectra, []), today)


def test_percent_more():
    found = percent_more(spectrum(8, {1.0: -2.0 + math.log10(1.5)}), 1.0)

    assert found == pytest.approx([50.0] * 4)


def test_a_threshold_without_patches_is_left_out():
    nothing = spectrum(8, {1.0: -1.5}), spectrum(8, {1.0: math.nan}, patches=0)

    picture = plot(nothing, ["a note"])

    assert picture.isfinite().all()
    assert len(rows_of(picture[60:, WIDTH // 2 + 60 :], curve_colours(1)[0])) == 0
    assert len(rows_of(picture[60:, : WIDTH // 2], curve_colours(1)[0])) > 0


def test_every_note_has_its_line():
    heights = [plot([spectrum(8, {1.0: -1.5})], ["a note"] * count).shape[0] for count in range(3)]

    assert heights[2] - heights[1] == heights[1] - heights[0] > 20


def test_limits_leave_room_and_skip_what_is_not_a_number():
    low, high = limits([math.nan, -1.0, 3.0])

    assert low < -1 < 3 < high
    assert limits([2.0]) == (1.0, 3.0)


def test_panel_places():
    p = panel((10, 20, 110, 220), (0.0, 4.0))

    assert p.at(0.0, 0.0) == (20, 440)
    assert p.at(0.5, 4.0) == (220, 40)
    assert p.at(0.25, 1.0) == (120, 340)
