"""Where the image and the prompt are in a sequence of a transformer."""

from types import SimpleNamespace

import pytest
import torch

from inner_guidance.host.taps.joint_models import IMAGE, OTHER, PROMPT, REFERENCES, JointModel
from inner_guidance.host.taps.tokens import Tokens

COUNT, TEXT = 12, 7


def tokens(*sequence, patch="patch_size", x=(16, 8, 6), **attributes):
    model = SimpleNamespace(**{"patch_size": 2} | attributes)
    return Tokens(
        JointModel("a model", (), sequence, patch=patch), model, torch.zeros(1, *x), torch.zeros(1, TEXT, 4)
    )


@pytest.mark.parametrize(
    ("sequence", "length", "image", "prompt"),
    [
        ((PROMPT, IMAGE), 19, 7, 0),
        ((PROMPT, IMAGE, REFERENCES), 19, 7, 0),
        ((PROMPT, IMAGE, REFERENCES), 40, 7, 0),
        ((PROMPT, REFERENCES, IMAGE), 40, 28, 0),
        ((PROMPT, OTHER, IMAGE), 32, 20, 0),
        ((OTHER, PROMPT, IMAGE), 27, 15, 8),
        ((IMAGE, PROMPT), 19, 0, 12),
        ((IMAGE, REFERENCES, PROMPT), 40, 0, 33),
        ((IMAGE, PROMPT, OTHER), 25, 0, 12),
        ((IMAGE,), 12, 0, None),
        ((REFERENCES, IMAGE, OTHER), 12, 0, None),
    ],
)
def test_the_place_follows_from_the_sizes(sequence, length, image, prompt):
    found = tokens(*sequence)
    assert found.image(length) == slice(image, image + COUNT)
    assert found.prompt(length) == (slice(0) if prompt is None else slice(prompt, prompt + TEXT))


@pytest.mark.parametrize(
    ("sequence", "length"),
    [((PROMPT, IMAGE), 18), ((PROMPT, IMAGE), 20), ((IMAGE,), 24), ((REFERENCES, IMAGE, OTHER), 30)],
)
def test_another_sequence_has_no_image(sequence, length):
    assert tokens(*sequence).image(length) is None


def test_among_images_the_text_does_not_count():
    assert tokens(PROMPT, REFERENCES, IMAGE).image_among_images(20) == slice(8, 20)
    assert tokens(PROMPT, IMAGE, REFERENCES).image_among_images(20) == slice(0, 12)


def test_models_that_differ_from_their_family():
    """Wan Fun: references first. Z-Image: filled up. HunyuanVideo 1.5: other text first. PixelDiT: less."""
    assert tokens(IMAGE, REFERENCES, ref_conv=object()).image(20) == slice(8, 20)
    assert tokens(PROMPT, OTHER, IMAGE, pad_tokens_multiple=32).image(64) == slice(32, 44)
    assert tokens(PROMPT, OTHER, IMAGE, vision_in=object()).prompt(40) == slice(21, 28)
    assert tokens(PROMPT, IMAGE, txt_max_length=5).image(17) == slice(5, 17)


@pytest.mark.parametrize(
    ("patch", "x", "grid"),
    [
        (2, (16, 7, 6), (4, 3)),
        (2, (16, 3, 8, 6), (3, 4, 3)),
        ([1, 2, 2], (16, 3, 8, 6), (3, 4, 3)),
        ([1, 2, 2], (16, 8, 6), (4, 3)),
    ],
)
def test_the_grid(patch, x, grid):
    assert tokens(IMAGE, patch_size=patch, x=x).grid == grid
    assert tokens(IMAGE, patch=1, x=(16, 7, 6)).grid == (7, 6)
