"""Attention Maps on records made by hand: pictures and their order, masks, words, what has to be wired."""

from types import SimpleNamespace

import pytest
import torch
from comfy import sd1_clip
from comfy.text_encoders import qwen_image

from inner_guidance.guidance.self_attention import average_on_finest_grid, resize_nearest
from inner_guidance.host.recording.records import AttentionRecord, AttentionStep
from inner_guidance.nodes.attention_maps import InnerAttentionMaps
from inner_guidance.tests.support.recorded_runs import WORDS, attention_record, filled, shares, shown

pytestmark = pytest.mark.oldest_host

PROMPT = "red sphere, white wall"


@pytest.fixture(scope="module")
def clip():
    tokenizer = sd1_clip.SD1Tokenizer()
    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)


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

    def test_words_that_are_broken_over_two_lines_are_one_map(self, clip):
        """The words may come from a node whose text has several lines; a caption has one."""
        asked = {"attention": "cross", "prompt": PROMPT, "clip": clip}

        broken, whole = (
            shown(InnerAttentionMaps, attention_record("positive"), words=words, **asked)[0]
            for words in ("white\nwall,\n sphere\n", "white wall, sphere")
        )

        assert torch.equal(broken, whole)

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
            ({"attention": "cross"}, "connect clip and enter the prompt"),
            (
                {"branch": "negative"},
                r"of the negative prompt .* Set branch to positive. At cfg 1 the sampler",
            ),
            (
                {"image": torch.rand(1, 64, 64, 3)},
                "1 image cannot belong to 2 maps. Connect the decoded image",
            ),
        ],
    )
    def test_says_what_to_wire(self, values, sentence):
        with pytest.raises(ValueError, match=sentence):
            shown(InnerAttentionMaps, attention_record("positive"), **values)

    @pytest.mark.parametrize(
        ("values", "sentence"),
        [
            ({"words": "unicorn"}, "no 'unicorn'. Its words are: red, sphere, white, wall"),
            ({"prompt": "a " * 100}, "had 77 tokens, and the CLIP makes 154 of this one. Connect the CLIP"),
            ({"prompt_number": 2}, "has 1 prompt. Set it to 1 or less"),
            ({"branch": "negative"}, "no cross-attention of the negative prompt"),
        ],
    )
    def test_says_which_words_there_are(self, clip, values, sentence):
        asked = {"attention": "cross", "prompt": PROMPT, "clip": clip} | values

        with pytest.raises(ValueError, match=sentence):
            shown(InnerAttentionMaps, attention_record("positive"), **asked)

    def test_a_prompt_of_other_steps(self, clip):
        """The first of two prompts, each for a part of the sampling, is over when the record begins."""
        step = AttentionStep(9, 1.0, {}, {("positive", "u1.0", 1): shares()})
        record = filled(AttentionRecord(), [step])
        asked = {"attention": "cross", "prompt": PROMPT, "clip": clip, "legend": False}

        _, masks = shown(InnerAttentionMaps, record, prompt_number=2, **asked)

        assert len(masks) == 2 * len(WORDS)
        with pytest.raises(ValueError, match=r"prompt 1 of the positive .* used there have the number 2"):
            shown(InnerAttentionMaps, record, **asked)

    def test_words_behind_an_image_that_the_text_encoder_saw(self):
        tokenizer = qwen_image.QwenImageTokenizer()
        clip = SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)
        given = torch.full((2, 200, 8, 8), 0.001)
        given[:, -5 - 1, 4] = 0.5  # before <|im_end|>, a new line, <|im_start|>, assistant, a new line
        record = filled(AttentionRecord(), [AttentionStep(0, 1.0, {}, {("positive", "b1", 0): given})])
        record.runs[0].references = frozenset({("positive", 0)})

        asked = {"attention": "cross", "prompt": "red sphere", "words": "sphere", "clip": clip}
        _, masks = shown(InnerAttentionMaps, record, smooth=False, **asked)

        assert masks[0].amax(dim=1).nonzero().flatten().tolist() == list(range(64, 80))

    def test_nothing_recorded(self):
        with pytest.raises(ValueError, match=r"nothing is recorded. Connect its MODEL to a sampler"):
            shown(InnerAttentionMaps, AttentionRecord())

    def test_no_self_attention_recorded(self):
        with pytest.raises(
            ValueError, match=r"no self-attention was recorded in this run. Choose other blocks"
        ):
            shown(InnerAttentionMaps, filled(AttentionRecord(), [AttentionStep(0, 1.0, {}, {})]))
