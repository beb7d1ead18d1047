"""depth_head/rendering.py: pictures of depth, and depth at image size."""

import pytest
import torch

from inner_guidance.depth_head.rendering import (
    NORMALISED,
    RAW,
    STYLES,
    as_picture,
    enlarge,
    enlarge_along_edges,
)
from inner_guidance.tests.support.largest_copy import LargestCopy


def ramp():
    """Two images, of which the second uses a part of the range."""
    row = torch.linspace(0, 1, 8).expand(1, 6, 8)
    return torch.stack([row, 0.25 + 0.5 * row])


def test_raw_is_the_depth_in_grey():
    picture = as_picture(ramp(), RAW)
    assert picture.shape == (2, 6, 8, 3)
    assert all(torch.equal(picture[..., channel], ramp()[:, 0]) for channel in range(3))


def test_normalised_stretches_every_image_by_itself():
    picture = as_picture(ramp(), NORMALISED)
    torch.testing.assert_close(picture[1], picture[0])
    assert (picture.min(), picture.max()) == (0, 1)


@pytest.mark.parametrize("style", [style for style in STYLES if style not in (RAW, NORMALISED)])
def test_colours_grow_lighter_towards_the_viewer(style):
    picture = as_picture(ramp(), style)
    luminance = (picture @ torch.tensor([0.2126, 0.7152, 0.0722]))[0, 0]
    assert picture.shape == (2, 6, 8, 3)
    assert (luminance.diff() > 0).all()
    assert (picture.amax(-1) - picture.amin(-1)).max() > 0.3


def test_enlarging_keeps_a_plane():
    depth = enlarge(ramp(), (12, 16))
    assert depth.shape == (2, 1, 12, 16)
    places = ((torch.arange(16) + 0.5) / 2 - 0.5).clamp(0, 7) / 7  # of the middles of the pixels
    torch.testing.assert_close(depth[0, 0], places.expand(12, 16))
    torch.testing.assert_close(depth[1, 0], 0.25 + 0.5 * places.expand(12, 16))


def step(place, size=64):
    return (torch.arange(size) >= place).float().expand(1, 1, size, size).contiguous()


@pytest.mark.parametrize("contrast", [0.6, 0.2])
def test_depth_follows_the_edges_of_the_picture(contrast):
    """Near begins at 27 of 64 pixels; the map of 8 knows it to the nearest 8."""
    truth = step(27)
    small = torch.nn.functional.interpolate(truth, (8, 8), mode="area")
    picture = (0.2 + contrast * truth).expand(-1, 3, -1, -1)
    smooth, edges = enlarge(small, (64, 64)), enlarge_along_edges(small, picture)

    def jump(depth):
        return (depth[..., 27] - depth[..., 26]).mean()

    assert edges.shape == (1, 1, 64, 64)
    assert jump(edges) > 3 * jump(smooth)
    assert (edges - truth).square().mean() < 0.8 * (smooth - truth).square().mean()


def test_edges_of_a_film_take_no_more_memory_than_those_of_a_frame():
    """A guided filter needs 330 bytes for each pixel of what it filters at once."""
    generator = torch.Generator().manual_seed(0)
    depth, film = (torch.rand(24, *shape, generator=generator) for shape in ((1, 6, 8), (3, 24, 32)))

    with LargestCopy() as copies:
        found = enlarge_along_edges(depth, film)

    assert copies.elements <= found.numel()
    for frame, alone in zip(film.split(1), depth.split(1), strict=True):
        torch.testing.assert_close(found[:1], enlarge_along_edges(alone, frame))
        found = found[1:]


def test_a_trace_of_an_edge_is_no_edge():
    """Its variance in a window is a tenth of EDGE_VARIANCE."""
    small = torch.nn.functional.interpolate(step(27), (8, 8), mode="area")
    picture = (0.5 + 0.02 * step(27)).expand(-1, 3, -1, -1)

    jump = enlarge_along_edges(small, picture)[..., 26:28].diff(dim=-1)

    assert jump.abs().max() < 0.2


@pytest.mark.parametrize("size", [(64, 64), (50, 98), (5, 7), (8, 8)])
def test_every_size_is_enlarged_along_edges(size):
    picture = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    depth = enlarge_along_edges(torch.rand(2, 1, 8, 8), picture)
    assert depth.shape == (2, 1, *size)
    assert depth.isfinite().all()
    assert 0 <= depth.min() <= depth.max() <= 1
