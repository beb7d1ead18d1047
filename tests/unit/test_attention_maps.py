"""guidance/attention_maps.py: which maps are averaged, how they are resized, what 1 means."""

import pytest
import torch

from inner_guidance.guidance import attention_maps as am
from inner_guidance.guidance.attention_maps import LayerMap
from inner_guidance.guidance.self_attention import resize_nearest


def flat(step, layer, value=1.0, grid=(2, 2)):
    return LayerMap(step, layer, torch.full((1, *grid), value, dtype=torch.float16))


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class TestGrouped:
    maps = (flat(0, "d1.0"), flat(0, "m0.0"), flat(0, "m0.1"), flat(4, "d1.0"), flat(4, "m0.0"))

    @pytest.mark.parametrize(
        ("each_block", "each_step", "expected"),
        [
            (False, False, [(None, None, 5)]),
            (True, False, [("d1", None, 2), ("m0", None, 3)]),
            (False, True, [(None, 0, 3), (None, 4, 2)]),
            (True, True, [("d1", 0, 1), ("d1", 4, 1), ("m0", 0, 2), ("m0", 4, 1)]),
        ],
    )
    def test_blocks_in_forward_order_then_steps(self, each_block, each_step, expected):
        groups = am.grouped(self.maps, each_block, each_step)

        assert [(group.block, group.step, len(group.maps)) for group in groups] == expected

    def test_joint_models_have_blocks_without_transformers(self):
        (group,) = am.grouped([flat(0, "b12")], each_block=True, each_step=False)

        assert group.block == "b12"


class TestAverage:
    def test_is_the_mean_over_maps_of_any_grid(self):
        maps = [flat(0, "m0.0", 1.0, (2, 2)), flat(1, "u0.0", 4.0, (4, 4))]

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


class TestLightest:
    def test_one_bright_token_does_not_darken_the_picture(self):
        picture = torch.linspace(0, 4, 10_000).view(1, 100, 100)
        picture[0, 0, 0] = 100.0

        assert am.lightest([picture]) == pytest.approx(3.98, abs=0.01)

    def test_is_common_to_all_pictures(self):
        assert am.lightest([torch.full((2, 4, 4), 3.0), torch.full((1, 4, 4), 5.0)]) == 5

    def test_average_is_never_lightest(self):
        assert am.lightest([torch.ones(1, 4, 4)]) == 2


def test_mask():
    values = torch.tensor([[[0.0, 0.9, 1.0, 1.1, 4.0, 8.0]]])

    assert am.mask(values, 1.0, 4.0).tolist() == [[[0, 0, 0, 1, 1, 1]]]
    assert am.mask(values, 0, 4.0).tolist() == [[[0, pytest.approx(0.225), 0.25, pytest.approx(0.275), 1, 1]]]
