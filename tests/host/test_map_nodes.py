"""Attention Maps, Feature Maps and Attention Spectrum, on records made by hand and by a tiny model."""

import json
from types import SimpleNamespace

import pytest
import torch
from comfy import sd1_clip
from tiny_models import patcher, sample

from inner_guidance.guidance.host.records import (
    AttentionRecord,
    AttentionStep,
    Execution,
    FeatureRecord,
    FeatureStep,
    Run,
)
from inner_guidance.guidance.self_attention import average_on_finest_grid, resize_nearest
from inner_guidance.nodes.attention_maps import InnerAttentionMaps
from inner_guidance.nodes.attention_spectrum import InnerAttentionSpectrum
from inner_guidance.nodes.feature_maps import InnerFeatureMaps
from inner_guidance.nodes.record import InnerRecordAttention, InnerRecordFeatures

PROMPT = "red sphere, white wall"
WORDS = {"red": 1, "sphere": 2, "white": 4, "wall": 5}  # their places among CLIP's tokens
TOKENS = 77
LATENT = {"samples": torch.zeros(2, 4, 16, 16)}
STEPS = (0, 2)


@pytest.fixture(scope="module")
def clip():
    tokenizer = sd1_clip.SD1Tokenizer()
    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)


def received(seed, grid):
    values = torch.rand(2, *grid, generator=torch.Generator().manual_seed(seed)) ** 2
    return (values / values.mean(dim=(1, 2), keepdim=True)).half()


def shares():
    """Attention to the prompt: each word has a row of the grid of its own, by the place of its token."""
    given = torch.full((2, TOKENS, 8, 8), 0.1 / TOKENS)
    for row, place in enumerate(WORDS.values()):
        given[:, place, 2 * row] = 0.5
    return given.half()


def attention_record(*branches):
    steps = [
        AttentionStep(
            number,
            1.0,
            {
                (branch, layer): received(number + len(layer) + grid, (grid, grid))
                for branch in branches
                for layer, grid in (("m0.0", 4), ("u1.0", 8))
            },
            {(branch, "u1.0", 0): shares() for branch in branches},
        )
        for number in STEPS
    ]
    return filled(AttentionRecord(), steps)


def feature_record():
    return filled(
        FeatureRecord(),
        [
            FeatureStep(
                number,
                1.0,
                {
                    ("positive", "m0"): torch.randn(2, 8, 4, 4).half(),
                    ("positive", "o3"): torch.randn(2, 6, 16, 16).half(),
                },
            )
            for number in STEPS
        ],
    )


def filled(record, steps):
    record.begin(Run(Execution(), (2, 4, 16, 16), (128, 128), steps))
    return record


def defaults(node):
    """The values that a new node has on the canvas."""
    inputs = node.define_schema().inputs
    return {i.id: i.default for i in inputs if hasattr(i, "default") and not i.optional}


def shown(node, record, **values):
    return node.execute(record=record, latent=LATENT, **defaults(node) | values).result


class TestAttentionMaps:
    def test_record_and_latent_are_enough(self):
        pictures, masks = shown(InnerAttentionMaps, attention_record("positive"))

        assert masks.shape == (2, 128, 128)
        assert pictures.shape[0] == 2
        assert pictures.shape[1] > pictures.shape[2] == 128  # caption and legend
        assert 0 <= pictures.min() < pictures.max() <= 1

    @pytest.mark.parametrize(
        ("values", "count"),
        [({"blocks": "each"}, 4), ({"steps": "each"}, 4), ({"blocks": "each", "steps": "each"}, 8)],
    )
    def test_a_picture_for_each(self, values, count):
        pictures, masks = shown(InnerAttentionMaps, attention_record("positive"), legend=False, **values)

        assert pictures.shape == (count, 128, 128, 3)
        assert masks.shape == (count, 128, 128)

    def test_order_is_block_then_step_then_image(self):
        record = attention_record("positive")

        _, masks = shown(InnerAttentionMaps, record, blocks="each", steps="each", smooth=False)

        expected = [
            resize_nearest((step.received["positive", layer].float() > 1).float(), (128, 128))
            for layer in ("m0.0", "u1.0")
            for step in record.runs[0].steps
        ]
        assert torch.equal(masks, torch.cat(expected))

    def test_mask_is_what_self_attention_guidance_blurs(self):
        record = attention_record("positive")
        maps = [values.float() for values in record.runs[0].steps[0].received.values()]

        _, masks = shown(InnerAttentionMaps, record, steps="each", smooth=False, threshold=1.1)

        m = (average_on_finest_grid(maps) > 1.1).float()
        assert torch.equal(masks[:2], resize_nearest(m, (128, 128)))

    def test_words_are_where_they_are_looked_for(self, clip):
        _, masks = shown(
            InnerAttentionMaps,
            attention_record("positive"),
            attention="cross",
            prompt=PROMPT,
            clip=clip,
            smooth=False,
        )

        assert masks.shape[0] == 2 * len(WORDS)
        for number, mask in enumerate(masks[::2]):
            rows = mask.amax(dim=1).nonzero().flatten()
            assert rows.tolist() == list(range(32 * number, 32 * number + 16))

    def test_steps_share_their_colours_and_blocks_do_not(self):
        record = attention_record("positive")
        faint, strong = (step.received["positive", "m0.0"] for step in record.runs[0].steps)
        faint.fill_(1.0)
        strong.fill_(1.0)
        strong[:, 0, 0] = 9.0
        legend = slice(-48, None)  # rows of the picture

        pictures, _ = shown(InnerAttentionMaps, record, blocks="each", steps="each")
        fixed, _ = shown(InnerAttentionMaps, record, blocks="each", steps="each", lightest=4.0)

        assert torch.equal(pictures[0, legend], pictures[2, legend])
        assert not torch.equal(pictures[0, legend], pictures[4, legend])
        assert torch.equal(fixed[0, legend], fixed[4, legend])

    def test_several_words_are_one_map(self, clip):
        _, masks = shown(
            InnerAttentionMaps,
            attention_record("positive"),
            attention="cross",
            prompt=PROMPT,
            words="white wall, sphere",
            clip=clip,
            smooth=False,
        )

        assert masks.shape[0] == 4
        assert masks[0].amax(dim=1).nonzero().flatten().tolist() == [*range(64, 80), *range(96, 112)]
        assert masks[2].amax(dim=1).nonzero().flatten().tolist() == [*range(32, 48)]

    def test_image_sets_the_size_and_shows_through(self):
        image = torch.rand(2, 96, 160, 3)

        plain, _ = shown(
            InnerAttentionMaps, attention_record("positive"), image=image, legend=False, opacity=0.0
        )
        covered, masks = shown(InnerAttentionMaps, attention_record("positive"), image=image, legend=False)

        torch.testing.assert_close(plain, image)
        assert covered.shape == image.shape
        assert masks.shape == (2, 96, 160)
        assert (covered - image).abs().mean() > 0.05

    def test_negative_branch(self):
        record = attention_record("positive", "negative")
        record.runs[0].steps[0].received["negative", "m0.0"].zero_()

        positive, negative = (
            shown(InnerAttentionMaps, record, branch=branch, legend=False)[0]
            for branch in ("positive", "negative")
        )

        assert not torch.equal(positive, negative)

    @pytest.mark.parametrize(
        ("values", "sentence"),
        [
            ({"attention": "cross"}, "wire the CLIP and write the prompt"),
            (
                {"branch": "negative"},
                r"of the negative prompt .* Set branch to positive. At cfg 1 the sampler",
            ),
            ({"image": torch.rand(1, 64, 64, 3)}, "1 image cannot belong to 2 maps. Wire the decoded image"),
        ],
    )
    def test_says_what_to_wire(self, values, sentence):
        with pytest.raises(ValueError, match=sentence):
            shown(InnerAttentionMaps, attention_record("positive"), **values)

    @pytest.mark.parametrize(
        ("values", "sentence"),
        [
            ({"words": "unicorn"}, "no 'unicorn'. Its words are: red, sphere, white, wall"),
            ({"prompt": "a " * 100}, "had 77 tokens, and the CLIP makes 154 of this one. Wire the CLIP"),
            ({"prompt_number": 2}, "has 1 prompt. Set it to 1 or less"),
            ({"branch": "negative"}, "no cross-attention of the negative prompt"),
        ],
    )
    def test_says_which_words_there_are(self, clip, values, sentence):
        asked = {"attention": "cross", "prompt": PROMPT, "clip": clip} | values

        with pytest.raises(ValueError, match=sentence):
            shown(InnerAttentionMaps, attention_record("positive"), **asked)

    def test_nothing_recorded(self):
        with pytest.raises(ValueError, match=r"nothing is recorded. Wire its MODEL into a sampler"):
            shown(InnerAttentionMaps, AttentionRecord())

    def test_no_self_attention_recorded(self):
        with pytest.raises(
            ValueError, match=r"no self-attention was recorded in this run. Choose other blocks"
        ):
            shown(InnerAttentionMaps, filled(AttentionRecord(), [AttentionStep(0, 1.0, {}, {})]))


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
            for mask in of_picture:
                assert len(picture[mask.bool()].unique(dim=0)) <= 1

    def test_over_the_image(self):
        image = torch.rand(2, 64, 64, 3)

        pictures, masks = shown(InnerFeatureMaps, feature_record(), image=image, opacity=0.0, legend=False)

        torch.testing.assert_close(pictures, image.repeat(2, 1, 1, 1))
        assert masks.shape[1:] == (64, 64)

    def test_says_what_to_wire(self):
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

    def test_one_mask_serves_all_images(self):
        record = attention_record("positive")
        image, mask = self.image_with_detail_inside(record)

        _, numbers = shown(InnerAttentionSpectrum, record, image=image, objects=mask[:1, ::2, ::2])

        assert 0 < json.loads(numbers)["objects"][0]["iou"] < 1

    @pytest.mark.parametrize(
        ("values", "sentence"),
        [
            ({"image": torch.rand(1, 64, 64, 3)}, "1 image cannot belong to 2 maps"),
            ({"objects": torch.zeros(3, 64, 64)}, "3 masks do not fit 2 images. Wire one"),
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
    model, attention = InnerRecordAttention.execute(
        patcher(kind, model_type), **defaults(InnerRecordAttention)
    ).result
    model, features = InnerRecordFeatures.execute(model, **defaults(InnerRecordFeatures)).result
    sample(model, torch.zeros(2, channels, 16, 16))

    maps, masks = shown(InnerAttentionMaps, attention, steps="each", legend=False)
    colours, regions = shown(InnerFeatureMaps, features, regions=3, legend=False)
    plot, _ = shown(InnerAttentionSpectrum, attention, image=maps[:2])

    assert maps.shape == (3 * 2, 128, 128, 3)
    assert 0.05 < masks.mean() < 0.95
    assert colours.shape == (2, 128, 128, 3)
    assert regions.shape == (2 * 3, 128, 128)
    assert plot.isfinite().all()
