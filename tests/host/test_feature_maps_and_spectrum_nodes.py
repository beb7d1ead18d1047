"""Feature Maps and Attention Spectrum on records made by hand, and all map nodes on a tiny model's run."""

import json

import comfy_extras.nodes_model_downscale as downscale
import pytest
import torch

from inner_guidance.guidance.self_attention import average_on_finest_grid, resize_nearest
from inner_guidance.host.recording.records import FeatureRecord, FeatureStep
from inner_guidance.nodes.attention_maps import InnerAttentionMaps
from inner_guidance.nodes.attention_spectrum import InnerAttentionSpectrum
from inner_guidance.nodes.feature_maps import InnerFeatureMaps
from inner_guidance.tests.support.recorded_runs import (
    STEPS,
    attention_record,
    filled,
    record_attention,
    record_features,
    shown,
)
from inner_guidance.tests.support.tiny_models import patcher, sample

pytestmark = pytest.mark.oldest_host


def feature_record():
    generator = torch.Generator().manual_seed(0)
    return filled(
        FeatureRecord(),
        [
            FeatureStep(
                number,
                1.0,
                {
                    ("positive", "m0"): torch.randn(2, 8, 4, 4, generator=generator).half(),
                    ("positive", "o3"): torch.randn(2, 6, 16, 16, generator=generator).half(),
                },
            )
            for number in STEPS
        ],
    )


class TestFeatureMaps:
    def test_record_and_latent_are_enough(self):
        pictures, masks = shown(InnerFeatureMaps, feature_record())

        assert pictures.shape[0] == 4  # two blocks of two images
        assert pictures.shape[1] > pictures.shape[2] == 128
        assert masks.shape == (4 * 5, 128, 128)
        assert torch.equal(masks.view(4, 5, 128, 128).sum(dim=1), torch.ones(4, 128, 128))

    @pytest.mark.parametrize(
        ("values", "count"),
        [({"steps": "each"}, 8), ({"blocks": "together"}, 2), ({"blocks": "together", "steps": "each"}, 4)],
    )
    def test_a_picture_for_each(self, values, count):
        pictures, masks = shown(InnerFeatureMaps, feature_record(), legend=False, regions=3, **values)

        assert pictures.shape == (count, 128, 128, 3)
        assert masks.shape == (3 * count, 128, 128)

    def test_regions_are_flat_and_are_the_masks(self):
        pictures, masks = shown(InnerFeatureMaps, feature_record(), show="regions", regions=4, legend=False)

        for picture, of_picture in zip(pictures, masks.split(4), strict=True):
            colours = [picture[mask.bool()].unique(dim=0) for mask in of_picture]
            assert [len(colour) for colour in colours] == [1] * 4
            assert len(torch.cat(colours).unique(dim=0)) == 4

    def test_over_the_image(self):
        image = torch.rand(2, 64, 64, 3)

        pictures, masks = shown(InnerFeatureMaps, feature_record(), image=image, opacity=0.0, legend=False)

        torch.testing.assert_close(pictures, image.repeat(2, 1, 1, 1))
        assert masks.shape[1:] == (64, 64)

    @pytest.mark.parametrize("channels", [1, 2, 4])
    def test_over_an_image_of_other_channels(self, channels):
        image = torch.rand(2, 64, 64, channels)

        pictures, _ = shown(InnerFeatureMaps, feature_record(), image=image, opacity=0.0, legend=False)

        assert torch.equal(pictures[0], image[0, ..., :3] if channels == 4 else image[0, ..., [0, 0, 0]])

    @pytest.mark.parametrize("blocks", ["each", "together"])
    def test_of_steps_on_two_grids(self, blocks):
        """Deep Shrink halves the latent inside the model in the first steps."""
        shrunk = downscale.PatchModelAddDownscale.execute(patcher(), 2, 2.0, 0.0, 0.5, True, "area", "area")
        watched, record = record_features(shrunk.result[0], blocks="m0, o3")
        sample(watched, steps=4)
        grids = {len(step.features["positive", "m0"][0, 0]) for step in record.runs[0].steps}

        pictures, _ = shown(InnerFeatureMaps, record, blocks=blocks)

        assert len(grids) == 2
        assert len(pictures) == (2 if blocks == "each" else 1)

    def test_says_what_to_wire(self):
        with pytest.raises(ValueError, match="image is empty"):
            shown(InnerFeatureMaps, feature_record(), image=torch.rand(2, 0, 64, 3))
        with pytest.raises(ValueError, match=r"no features of the negative prompt .* Set branch to positive"):
            shown(InnerFeatureMaps, feature_record(), branch="negative")
        with pytest.raises(ValueError, match="Record Features: nothing is recorded"):
            shown(InnerFeatureMaps, FeatureRecord())


class TestAttentionSpectrum:
    def image_with_detail_inside(self, record):
        """Noise where the mean attention of the run is above 1, and smooth elsewhere."""
        maps = [v.float() for step in record.runs[0].steps for v in step.received.values()]
        mask = resize_nearest((average_on_finest_grid(maps) > 1).float(), (128, 128))
        noise = torch.rand(2, 128, 128, generator=torch.Generator().manual_seed(0))
        return (0.5 + 0.3 * mask * (noise - 0.5))[..., None].expand(-1, -1, -1, 3), mask

    def test_plot_and_numbers(self):
        record = attention_record("positive")
        image, mask = self.image_with_detail_inside(record)

        plot, numbers = shown(InnerAttentionSpectrum, record, image=image, objects=mask)

        assert plot.shape[0] == 1
        assert plot.shape[2] == 1200
        found = json.loads(numbers)
        assert [panel["size"] for panel in found["patches"]] == [8, 16, 32]
        eight = found["patches"][0]
        assert eight["all"]["patches"] == 2 * 16 * 16
        assert [inside["threshold"] for inside in eight["inside"]] == [1.0, 1.3]
        assert eight["inside"][0]["more_at_every_frequency"]
        assert found["objects"][0]["iou"] == 1
        assert found["objects"][0]["random_iou"] < 0.8

    def test_without_objects_and_without_patches(self):
        record = attention_record("positive")
        image, _ = self.image_with_detail_inside(record)

        plot, numbers = shown(InnerAttentionSpectrum, record, image=image, second_threshold=50.0)

        assert plot.isfinite().all()
        found = json.loads(numbers)
        assert found["objects"] == []
        assert found["patches"][0]["inside"][1]["patches"] == 0
        assert set(found["patches"][0]["inside"][1]["log10_magnitude"]) == {None}

    @pytest.mark.parametrize("channels", [1, 4])
    def test_grey_and_transparent_images_are_measured_as_rgb(self, channels):
        image = torch.rand(2, 64, 64, channels, generator=torch.Generator().manual_seed(0))
        rgb = image[..., :3] if channels == 4 else image.repeat(1, 1, 1, 3)

        found, expected = (
            json.loads(shown(InnerAttentionSpectrum, attention_record("positive"), image=pictures)[1])
            for pictures in (image, rgb)
        )

        assert found == expected
        assert found["patches"][0]["inside"][0]["patches"] > 0

    def test_numbers_whose_squares_overflow_are_measured(self):
        image = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))

        (plot, numbers), (_, plain) = (
            shown(InnerAttentionSpectrum, attention_record("positive"), image=by * image)
            for by in (1e30, 1e10)
        )

        assert plot.isfinite().all()
        large, small = (
            json.loads(found)["patches"][0]["all"]["log10_magnitude"] for found in (numbers, plain)
        )
        assert large == pytest.approx([value + 20 for value in small], abs=1e-4)

    @pytest.mark.parametrize("change", [lambda mask: mask[:, None], lambda mask: mask.bool()])
    def test_masks_of_four_dimensions_and_of_booleans(self, change):
        record = attention_record("positive")
        image, mask = self.image_with_detail_inside(record)

        _, numbers = shown(InnerAttentionSpectrum, record, image=image, objects=change(mask))

        assert json.loads(numbers)["objects"][0]["iou"] == 1

    def test_one_mask_serves_all_images(self):
        record = attention_record("positive")
        image, mask = self.image_with_detail_inside(record)

        _, numbers = shown(InnerAttentionSpectrum, record, image=image, objects=mask[:1, ::2, ::2])

        assert 0 < json.loads(numbers)["objects"][0]["iou"] < 1

    def test_a_video_has_more_images_and_masks_than_maps(self):
        record = attention_record("positive")
        image, mask = self.image_with_detail_inside(record)
        frames, masks = torch.zeros(6, 128, 128, 3), torch.zeros(6, 128, 128)
        frames[[0, 3]], masks[[0, 3]] = image, mask

        _, numbers = shown(InnerAttentionSpectrum, record, image=frames, objects=masks)

        assert json.loads(numbers)["objects"][0]["iou"] == 1

    @pytest.mark.parametrize(
        ("values", "sentence"),
        [
            ({"image": torch.rand(1, 64, 64, 3)}, "1 image cannot belong to 2 maps"),
            ({"image": torch.rand(0, 64, 64, 3)}, "image is empty: connect at least one"),
            ({"image": torch.rand(2, 7, 64, 3)}, "it is 64 x 7, and the smallest patch"),
            ({"image": torch.full((2, 64, 64, 3), torch.nan)}, "values that are not finite"),
            ({"objects": torch.zeros(3, 64, 64)}, "3 masks do not match 2 images. Connect one"),
            ({"objects": torch.zeros(0, 64, 64)}, "0 masks do not match 2 images. Connect one"),
            ({"branch": "negative"}, "Set branch to positive"),
        ],
    )
    def test_says_what_to_wire(self, values, sentence):
        with pytest.raises(ValueError, match=sentence):
            shown(
                InnerAttentionSpectrum,
                attention_record("positive"),
                **{"image": torch.rand(2, 64, 64, 3)} | values,
            )


@pytest.mark.parametrize(("kind", "channels"), [("small", 4), ("sdxl", 4), ("flux", 16)])
def test_a_run_of_the_stock_sampler_is_shown(kind, channels):
    model_type = "FLUX" if kind == "flux" else "EPS"
    model, attention = record_attention(patcher(kind, model_type))
    model, features = record_features(model)
    sample(model, torch.zeros(2, channels, 16, 16))

    maps, masks = shown(InnerAttentionMaps, attention, steps="each", legend=False)
    colours, regions = shown(InnerFeatureMaps, features, regions=3, legend=False)
    plot, _ = shown(InnerAttentionSpectrum, attention, image=maps[:2])

    assert maps.shape == (3 * 2, 128, 128, 3)
    assert 0.05 < masks.mean() < 0.95
    assert colours.shape == (2, 128, 128, 3)
    assert regions.shape == (2 * 3, 128, 128)
    assert plot.isfinite().all()
