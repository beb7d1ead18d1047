"""pictures/feature_maps.py against numpy and on pictures of known regions."""

import numpy as np
import pytest
import torch

from inner_guidance.pictures import feature_maps as fm
from inner_guidance.pictures.layer_maps import LayerMap


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quarters(seed=0, noise=0.1):
    """Features (1, 12, 8, 8) of four quarters, of which the first has three neighbours' size."""
    generator = torch.Generator().manual_seed(5)
    centres = 3 * torch.randn(4, 12, generator=generator)
    region = torch.zeros(8, 8, dtype=torch.int64)
    region[:3, 5:], region[6:, :2], region[7, 7] = 1, 2, 3
    return centres[region].permute(2, 0, 1)[None] + noise * random(1, 12, 8, 8, seed=seed), region


class TestPrincipalComponents:
    features = (random(2, 6, 5, 4), 3 + random(2, 6, 5, 4, seed=1))

    def tokens(self):
        return torch.cat([f.movedim(1, -1).reshape(-1, 6) for f in self.features]).double().numpy()

    def test_are_those_of_the_singular_value_decomposition(self):
        tokens = self.tokens()
        tokens = tokens - tokens.mean(0)
        _, _, axes = np.linalg.svd(tokens, full_matrices=False)
        expected = tokens @ axes[:3].T

        found = fm.principal_components(self.features, 3)

        found = np.concatenate([z.movedim(1, -1).reshape(-1, 3).numpy() for z in found])
        sign = np.sign((found * expected).sum(0))
        np.testing.assert_allclose(found, expected * sign, atol=1e-4)

    def test_do_not_flip_when_the_features_hardly_change(self):
        first = fm.principal_components(self.features, 3)
        again = fm.principal_components([f + 1e-4 * random(2, 6, 5, 4, seed=9) for f in self.features], 3)

        for a, b in zip(first, again, strict=True):
            torch.testing.assert_close(a, b, atol=1e-2, rtol=0)

    def test_do_not_depend_on_how_the_tokens_are_shared_out(self):
        together = fm.principal_components([torch.cat(self.features)], 3)

        torch.testing.assert_close(together[0], torch.cat(fm.principal_components(self.features, 3)))

    def test_half_precision_features_of_large_mean_keep_their_detail(self):
        detail = random(1, 4, 8, 8)
        (z,) = fm.principal_components([(200 + detail).half()])

        assert float(z.var(correction=0, dim=(0, 2, 3)).sum()) == pytest.approx(
            float(detail.var(correction=0, dim=(0, 2, 3)).sum()), rel=0.02
        )

    def test_no_more_than_there_are_channels(self):
        assert fm.principal_components([random(1, 2, 4, 4)], 3)[0].shape == (1, 2, 4, 4)


class TestColours:
    def test_are_common_to_all_pictures(self):
        dark, bright = random(1, 3, 30, 30), 10 + random(1, 3, 30, 30, seed=1)

        shown_dark, shown_bright = fm.as_colours([dark, bright])

        assert shown_dark.mean() < 0.3
        assert shown_bright.mean() > 0.7

    def test_a_few_outliers_do_not_grey_the_rest(self):
        z = random(1, 3, 40, 40)
        z[0, :, 0, :3] = 1e4

        (shown,) = fm.as_colours([z])

        assert shown.std() > 0.2
        assert shown.min() == 0
        assert shown.max() == 1

    def test_of_one_channel_are_grey(self):
        (shown,) = fm.as_colours([random(1, 1, 4, 4)])

        assert torch.equal(shown[:, 0], shown[:, 2])

    def test_of_a_flat_picture_are_finite(self):
        assert fm.as_colours([torch.ones(1, 3, 4, 4)])[0].isfinite().all()


class TestRegions:
    def test_are_the_regions_largest_first(self):
        features, expected = quarters()

        (label,) = fm.cut(fm.principal_components([features]), 4, seed=0)

        assert torch.equal(label[0], expected)

    @pytest.mark.parametrize("factor", [1e-30, 1e30])
    def test_of_features_whose_squares_float32_cannot_hold(self, factor):
        features, region = quarters()

        (label,) = fm.cut(fm.principal_components([factor * features]), 4, seed=0)

        assert torch.equal(label[0], region)

    def test_keep_their_number_in_every_picture(self):
        (one, expected), (two, _) = quarters(seed=1), quarters(seed=2)

        labels = fm.cut(fm.principal_components([one, two.flip(-1)]), 4, seed=3)

        assert torch.equal(labels[0][0], expected)
        assert torch.equal(labels[1][0], expected.flip(-1))

    def test_are_those_of_the_seed(self):
        z = fm.principal_components([random(1, 8, 16, 16)])

        first, again = (fm.cut(z, 5, seed=7)[0] for _ in range(2))

        assert torch.equal(first, again)
        assert first.unique().tolist() == [0, 1, 2, 3, 4]


def test_joined_blocks_have_the_same_weight_on_the_finest_grid():
    coarse, fine = (
        [100 * random(1, 3, 4, 4), 100 * random(1, 3, 4, 4, seed=1)],
        [random(1, 2, 8, 8), random(1, 2, 8, 8)],
    )

    joined = fm.joined([coarse, fine])

    assert [z.shape for z in joined] == [(1, 5, 8, 8)] * 2
    both = torch.cat([z.transpose(0, 1).flatten(1) for z in joined], dim=1)
    assert float(both[3:].var(dim=1, correction=0).sum()) == pytest.approx(1, rel=1e-3)
    assert 0.2 < float(both[:3].var(dim=1, correction=0).sum()) < 1  # resizing takes some of it


class TestFeaturePictures:
    """Two steps of a coarse and a fine block, both with the four quarters in them."""

    def recorded(self):
        found = []
        for step in (2, 5):
            fine, _ = quarters(seed=step)
            coarse = torch.nn.functional.avg_pool2d(fine, 2)[:, :6]
            found += [LayerMap(step, "m0", coarse.half()), LayerMap(step, "o3", fine.half())]
        return found

    @pytest.mark.parametrize(
        ("each_block", "each_step", "expected"),
        [
            (True, True, [("m0, step 3", 4), ("m0, step 6", 4), ("o3, step 3", 8), ("o3, step 6", 8)]),
            (True, False, [("m0, steps 3-6", 4), ("o3, steps 3-6", 8)]),
            (False, True, [("2 blocks, step 3", 8), ("2 blocks, step 6", 8)]),
            (False, False, [("2 blocks, steps 3-6", 8)]),
        ],
    )
    def test_order_and_grids(self, each_block, each_step, expected):
        pictures = fm.feature_pictures(self.recorded(), each_block, each_step, 4, seed=0)

        assert [(p.title, p.colours.shape[-1]) for p in pictures] == expected
        for p in pictures:
            assert p.colours.shape == (1, 3, *p.region.shape[1:])
            assert p.region_colours.shape == (4, 3)

    def test_regions_and_their_colours(self):
        _, expected = quarters()

        picture = fm.feature_pictures(self.recorded(), True, False, 4, seed=0)[1]

        assert torch.equal(picture.region[0], expected)
        for number in range(4):
            torch.testing.assert_close(
                picture.region_colours[number], picture.colours[0][:, expected == number].mean(dim=1)
            )

    def test_a_step_on_a_coarser_grid_is_in_the_mean(self):
        """A constant step scales all colours alike, so they are those of the other step alone."""
        fine, coarse = LayerMap(5, "o3", quarters()[0]), LayerMap(2, "o3", torch.full((1, 12, 4, 4), 7.0))

        alone, mean = (fm.feature_pictures(found, True, False, 4, 0) for found in ([fine], [coarse, fine]))

        assert mean[0].title == "o3, steps 3-6"
        torch.testing.assert_close(mean[0].colours, alone[0].colours)

    @pytest.mark.parametrize("each_step", [True, False])
    def test_a_block_without_differences_adds_nothing(self, each_step):
        block = [LayerMap(2, "o3", quarters()[0])]
        constant = [LayerMap(2, "m0", torch.full((1, 6, 4, 4), 0.3)), LayerMap(2, "i9", random(1, 6, 1, 1))]

        alone, both = (
            fm.feature_pictures(found, False, each_step, 4, 0) for found in (block, [*constant, *block])
        )

        torch.testing.assert_close(both[0].colours, alone[0].colours)

    def test_together_are_the_steps_that_have_all_blocks(self):
        every, missing = self.recorded(), self.recorded()[:-1]  # o3 is missing at step 6

        (expected,) = fm.feature_pictures(every[:2], False, True, 4, 0)
        (only,) = fm.feature_pictures(missing, False, True, 4, 0)

        assert only.title == "2 blocks, step 3"
        assert torch.equal(only.colours, expected.colours)
        with pytest.raises(ValueError, match="no recorded step has all of o3, m0"):
            fm.feature_pictures(missing[1:], False, True, 4, 0)

    def test_frames_of_a_video_are_pictures(self):
        frames = torch.stack([quarters(seed=i)[0] for i in range(3)], dim=2)  # (1, 12, 3, 8, 8)

        (picture,) = fm.feature_pictures([LayerMap(0, "m0", frames)], True, True, 4, seed=0)

        assert picture.region.shape == (3, 8, 8)
        assert torch.equal(picture.region[2], quarters()[1])


class TestAtSize:
    def test_tokens_are_rectangles(self):
        colours = torch.rand(1, 3, 2, 2)

        shown = fm.at_size(colours, (8, 4), smooth=False)

        assert torch.equal(shown[0, :4, :2], colours[0, :, 0, 0].expand(4, 2, 3))

    def test_regions_stay_regions(self):
        region = quarters()[1][None].repeat(2, 1, 1)

        blocky, rounded = (fm.regions_at_size(region, 5, (64, 64), smooth) for smooth in (False, True))

        assert torch.equal(blocky, region.repeat_interleave(8, 1).repeat_interleave(8, 2))
        assert torch.equal(rounded[:, 4::8, 4::8], region)
        assert 0.9 < float((rounded == blocky).float().mean()) < 1

    def test_masks_share_out_every_pixel(self):
        region = quarters()[1][None].repeat(2, 1, 1)

        masks = fm.region_masks(region, 5)

        assert masks.shape == (10, 8, 8)
        assert torch.equal(masks[:5].sum(dim=0), torch.ones(8, 8))
        assert torch.equal(masks[7], (region[1] == 2).float())
        assert masks[4].sum() == 0


def test_blocks_are_joined_on_the_finest_grid_of_any_step():
    joined = fm.joined([[random(1, 2, 4, 4), random(1, 2, 8, 8)], [random(1, 2, 4, 4), random(1, 2, 4, 4)]])

    assert [of_step.shape for of_step in joined] == [(1, 4, 8, 8)] * 2
