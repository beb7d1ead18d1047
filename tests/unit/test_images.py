"""pictures/images.py: images of any number of channels, and those that belong to maps."""

import pytest
import torch

from inner_guidance.pictures.images import as_rgb, images_of, require_images


@pytest.mark.parametrize(
    ("pixel", "rgb"),
    [
        ([0.5], [0.5] * 3),
        ([0.5, 0.25], [0.5] * 3),
        ([0.5, 0.25, 0.125], [0.5, 0.25, 0.125]),
        ([0.5, 0.25, 0.125, 0.75], [0.5, 0.25, 0.125]),
    ],
    ids=["grey", "grey with alpha", "RGB", "RGBA"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_images_have_three_channels_in_float32(pixel, rgb, dtype):
    assert torch.equal(as_rgb(torch.tensor([[[pixel]]], dtype=dtype)), torch.tensor([[[rgb]]]))


def test_frames_of_a_video_are_chosen_evenly():
    frames = torch.arange(9.0).view(9, 1, 1, 1).expand(9, 2, 2, 4)

    assert images_of(frames, 3)[:, 0, 0].tolist() == [[0] * 3, [3] * 3, [6] * 3]


@pytest.mark.parametrize(("given", "said"), [(1, "1 image cannot"), (0, "0 images cannot")])
def test_too_few_images(given, said):
    with pytest.raises(ValueError, match=rf"{said} belong to 2 maps\. Connect the decoded image"):
        images_of(torch.zeros(given, 4, 4, 3), 2)


@pytest.mark.parametrize(
    ("shape", "said"),
    [((0, 8, 8, 3), "image is empty"), ((1, 0, 8, 3), "image is empty"), ((8, 8, 3), "has 3 dimensions")],
)
def test_what_is_no_batch_of_images_is_one_sentence(shape, said):
    with pytest.raises(ValueError, match=said):
        require_images(torch.zeros(shape), "image")
