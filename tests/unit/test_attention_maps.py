"""pictures/attention_maps.py: how maps are resized and averaged, and what 1 means."""

import pytest
import torch

from inner_guidance.guidance.self_attention import resize_nearest
from inner_guidance.pictures import attention_maps as am
from inner_guidance.pictures.layer_maps import LayerMap


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class TestAverage:
    def test_is_the_mean_over_maps_of_any_grid(self):
        maps = [
            LayerMap(0, "m0.0", torch.full((1, 2, 2), 1.0).half()),
            LayerMap(1, "u0.0", torch.full((1, 4, 4), 4.0).half()),
        ]

        for smooth in (False, True):
            torch.testing.assert_close(am.average(maps, (8, 8), smooth), torch.full((1, 8, 8), 2.5))

    def test_tokens_are_the_rectangles_that_self_attention_guidance_masks(self):
        values = random(3, 5, 7)

        blocky = am.average([LayerMap(0, "m0.0", values)], (40, 56), smooth=False)

        assert torch.equal(blocky, resize_nearest(values, (40, 56)))

    def test_smooth_keeps_places_and_is_never_negative(self):
        values = torch.zeros(1, 8, 8)
        values[0, 2, 5] = 3.0

        smooth = am.average([LayerMap(0, "m0.0", values)], (64, 64), smooth=True)[0]

        row, column = divmod(int(smooth.argmax()), 64)
        assert 16 <= row < 24
        assert 40 <= column < 48
        assert smooth.min() == 0
        rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        assert float((smooth * rows).sum() / smooth.sum()) == pytest.approx(19.5, abs=1e-3)
        assert float((smooth * columns).sum() / smooth.sum()) == pytest.approx(43.5, abs=1e-3)

    def test_frames_of_a_video_follow_one_another(self):
        values = torch.arange(6.0).view(2, 3, 1, 1).expand(2, 3, 4, 4)

        frames = am.average([LayerMap(0, "m0.0", values)], (8, 8), smooth=True)

        assert frames[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_relative_has_mean_1_and_leaves_nothing_at_nothing():
    shares = torch.stack([random(6, 6) * 1e-3, torch.zeros(6, 6)])

    relative = am.relative(shares)

    torch.testing.assert_close(relative[0].mean(), torch.tensor(1.0))
    assert relative[1].abs().max() == 0
    torch.testing.assert_close(relative[0] * shares[0].mean(), shares[0])


class TestColourRange:
    def test_a_few_extreme_tokens_do_not_take_the_colours(self):
        picture = torch.linspace(0.2, 4.2, 10_000).view(1, 100, 100)
        picture[0, 0, :9], picture[0, -1, -9:] = -50.0, 100.0

        low, high = am.colour_range([picture])

        assert low == pytest.approx(0.22, abs=0.01)
        assert high == pytest.approx(4.18, abs=0.01)

    def test_is_common_to_all_pictures(self):
        assert am.colour_range([torch.full((2, 4, 4), 3.0), torch.full((1, 4, 4), 5.0)]) == (0.5, 5)
        assert am.colour_range([torch.full((1, 4, 4), 0.125), torch.ones(1, 4, 4)]) == (0.125, 2)

    def test_next_to_no_difference_does_not_fill_it(self):
        assert am.colour_range([1 + 0.01 * random(1, 4, 4)]) == am.LEAST_RANGE


def test_mask():
    values = torch.tensor([[[0.0, 0.9, 1.0, 1.1, 4.0, 8.0]]])

    assert am.mask(values, 1.0, 0.5, 4.5).tolist() == [[[0, 0, 0, 1, 1, 1]]]
    torch.testing.assert_close(
        am.mask(values, 0, 0.5, 4.5), torch.tensor([[[0, 0.1, 0.125, 0.15, 0.875, 1]]])
    )


def test_glowing_covers_by_share_and_dims_the_rest():
    image, colours = torch.full((1, 1, 3, 3), 0.6), torch.ones(1, 1, 3, 3)
    shares = torch.tensor([[[0.0, 0.5, 1.0]]])

    assert torch.equal(am.overlaid(image, colours, shares, 0.0), image)
    torch.testing.assert_close(
        am.overlaid(image, colours, shares, 0.5)[0, 0, :, 0], torch.tensor([0.5, 0.625, 0.75])
    )
    torch.testing.assert_close(
        am.overlaid(image, colours, shares, 1.0)[0, 0, :, 0], torch.tensor([0.4, 0.7, 1.0])
    )


def test_captions_tell_the_image_the_word_its_share_and_the_group():
    maps = [LayerMap(step, "m0.0", torch.ones(2, 4, 4)) for step in (0, 4)]
    ((word, groups),) = am.series({"red": maps}, each_block=True, each_step=True)
    found = [torch.stack([torch.full((8, 8), 0.125), torch.full((8, 8), 0.25)]), torch.full((1, 8, 8), 0.5)]

    assert am.captions_of(word, groups, found, with_share=True) == [
        "image 1: red (12.5%), m0, step 1",
        "image 2: red (25.0%), m0, step 1",
        "red (50.0%), m0, step 5",
    ]
    assert am.captions_of(word, groups, found, with_share=False)[-1] == "red, m0, step 5"
