"""depth_head/depth_maps.py: the same depth, however a node or a file delivers it."""

import logging

import pytest
import torch

from inner_guidance.depth_head.depth_maps import (
    centre_crop,
    read_depth_maps,
    read_target_depth,
    resize_antialiased,
)
from inner_guidance.tests.support.largest_copy import LargestCopy


def depth(count=2, height=24, width=32):
    """Depth (N, h, w) that spans [0, 1] in each image."""
    maps = torch.rand(count, height, width, generator=torch.Generator().manual_seed(0))
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


def image(maps, channels=3):
    return maps[..., None].expand(-1, -1, -1, channels)


AFFINE = {"metres": (9, 1), "bytes": (255, 0), "centred": (1, -0.5), "narrow": (0.3, 0.2)}


@pytest.mark.parametrize("scale_and_shift", AFFINE.values(), ids=AFFINE)
def test_only_the_shape_of_a_target_counts(scale_and_shift):
    scale, shift = scale_and_shift

    read = read_target_depth(image(scale * depth() + shift), "target_depth")

    torch.testing.assert_close(read, depth()[:, None], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["metres", "bytes", "centred"])
def test_labels_outside_0_to_1_are_stretched_one_by_one(kind, caplog):
    scale, shift = AFFINE[kind]
    with caplog.at_level(logging.WARNING):
        read = read_depth_maps(image(scale * depth() + shift), "depths")

    torch.testing.assert_close(read, depth()[:, None], rtol=0, atol=1e-5)
    (record,) = caplog.records
    assert record.getMessage().startswith("depths: depth from ")
    assert (
        "largest value counts as nearest (1). If larger is farther, as in metres, invert"
        in record.getMessage()
    )


def test_labels_within_0_to_1_keep_the_scale_that_they_share(caplog):
    labels = 0.3 * depth() + 0.2

    assert torch.equal(read_depth_maps(image(labels), "depths"), image(labels).mean(-1)[:, None])
    assert not caplog.records


def test_no_copy_is_larger_than_the_depth_that_is_returned():
    """Of thousands of maps, copies in colour do not fit in memory."""
    maps = image(depth(200)).contiguous()

    with LargestCopy() as copies:
        read = read_depth_maps(maps, "depths")

    assert copies.elements == read.numel()


def test_one_map_in_colour_among_many_is_warned_of(caplog):
    maps = image(depth(100)).clone()
    maps[70, ..., 0] = 0

    read_depth_maps(maps, "depths")

    (record,) = caplog.records
    assert record.getMessage().startswith("depths is in colour")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.uint16, torch.float16, torch.float64])
def test_maps_of_other_types(dtype):
    near = torch.zeros(1, 4, 4)
    near[:, :2] = 1

    assert torch.equal(read_depth_maps(image(near).to(dtype), "depths"), near[:, None])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_alpha_is_dropped(channels):
    """Of one channel and alpha, and of three and alpha, the depth is that of the colours."""
    pixels = image(depth(), channels).clone()
    if channels in (2, 4):
        pixels[..., -1] = 1.0

    torch.testing.assert_close(read_depth_maps(pixels, "depths"), depth()[:, None])


@pytest.mark.parametrize("scale", [1.0, 255.0], ids=["floats", "bytes"])
def test_photographs_among_depth_maps_are_warned_of(scale, caplog):
    photograph = scale * torch.stack([depth(1), depth(1) ** 2, 1 - depth(1)], dim=-1)
    labels = scale * image(depth(3))

    read_depth_maps(labels + 0.01 * scale * torch.rand_like(labels).clamp(0, 1) - 0.01 * scale, "grey")
    read_depth_maps(torch.cat([labels, photograph]), "depths")

    sentences = [r.getMessage() for r in caplog.records if "colour" in r.getMessage()]
    assert len(sentences) == 1
    assert sentences[0].startswith("depths is in colour, but depth maps are grey: near is white")


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (image(depth())[:0], "depths is empty"),
        (image(depth() * torch.inf), "depths has values that are not finite"),
        (depth(), "depths has 3 dimensions, and images have 4"),
        (
            torch.cat([image(depth()), torch.full((1, 24, 32, 3), 0.5)]),
            "1 of the 3 depth maps have a single grey value: leave them out; the first is number 3",
        ),
        (image(0 * depth() + 255), "2 of the 2 depth maps have a single grey value: connect"),
    ],
)
def test_maps_without_depth_are_refused(pixels, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_depth_maps(pixels, "depths")


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ((16, 16), slice(0, 24), slice(4, 28)),
        ((8, 16), slice(4, 20), slice(0, 32)),
        ((48, 64), slice(0, 24), slice(0, 32)),
    ],
)
def test_another_aspect_is_cropped_at_the_centre(size, rows, columns):
    maps = depth()[:, None]

    assert torch.equal(centre_crop(maps, *size), maps[..., rows, columns])


@pytest.mark.parametrize(("before", "after"), [((24, 40), (16, 16)), ((8, 6), (9, 12))])
def test_maps_are_resized_as_by_pytorch_and_so_are_gradients(before, after):
    maps = torch.rand(2, 1, *before, requires_grad=True)
    weights = torch.rand(2, 1, *after)

    found = resize_antialiased(maps, *after)
    expected = torch.nn.functional.interpolate(maps, after, mode="bilinear", antialias=True)

    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((resized * weights).sum(), maps)[0] for resized in (found, expected)]
    torch.testing.assert_close(*gradients)
