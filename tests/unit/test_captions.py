"""pictures/captions.py: what is written around pictures, and that the colours in it are those of the map."""

import importlib

import pytest
import torch
from PIL import ImageFont

from inner_guidance.pictures.captions import MOST_TICKS, ColourBar, caption, captioned, colour_bar, ticks
from inner_guidance.pictures.colour_map import COLOUR_MAPS, colours

EMBER = COLOUR_MAPS["ember"]


def test_a_picture_stays_as_it_is_between_the_strips():
    pictures = torch.rand(2, 40, 256, 3)

    framed = captioned(pictures, ["first", "second"], ColourBar(EMBER, 0.0, 3.0, "attention"))

    above = caption("first", 256).shape[0]
    assert torch.equal(framed[:, above : above + 40], pictures)
    assert (framed.shape[1] - 40) % 8 == 0
    assert not torch.equal(framed[0, :above], framed[1, :above])
    assert torch.equal(framed[0, above + 40 :], framed[1, above + 40 :])


def test_the_bar_shows_the_colours_of_the_map_where_its_numbers_are():
    bar = colour_bar(ColourBar(EMBER, 0.5, 4.5, "attention"), 512)
    size = 512 // 34
    row = bar[size]  # within the gradient

    for share in (0.0, 0.125, 0.6, 1.0):
        column = round(size + (512 - 2 * size - 1) * share)
        torch.testing.assert_close(row[column], colours(torch.tensor(share), EMBER), atol=0.02, rtol=0)
    below = bar[round(1.6 * size)]
    ticked = size + (512 - 2 * size - 1) * torch.arange(0.5, 4) / 4  # at 1, 2, 3 and 4
    assert all((below[round(x) - 1 : round(x) + 2] > 0.8).any() for x in ticked.tolist())
    assert (below > 0.8).all(dim=-1).sum() <= 4 * 3


@pytest.mark.parametrize("width", [1, 8, 22])
def test_a_picture_narrower_than_a_letter(width):
    framed = captioned(torch.rand(1, 8, width, 3), ["words"], ColourBar(EMBER, 0.5, 4.5, "attention"))

    assert framed.shape[2] == width


def test_a_caption_that_is_too_long_is_cut_and_the_end_stays_free():
    strip = caption("a very long prompt of many words " * 20, 256)

    assert strip.shape[1] == 256
    assert (strip[:, -4:] == strip[0, 0]).all()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 2.0, [0, 0.5, 1, 1.5, 2]),
        (0, 3.4, [0, 1, 2, 3]),
        (0, 27.0, [0, 5, 10, 15, 20, 25]),
        (-2.9, -0.4, [-2.5, -2, -1.5, -1, -0.5]),
        (-0.013, 0.041, [-0.01, 0, 0.01, 0.02, 0.03, 0.04]),
    ],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(low, high) == expected


def test_ticks_are_few_at_any_scale():
    for high in torch.logspace(-3, 4, 200).tolist():
        assert 2 <= len(ticks(0, high)) <= MOST_TICKS


@pytest.mark.parametrize(
    "module", ["pictures.loss_curve", "depth_head.head_report", "classifier_head.classifier_report"]
)
def test_pillow_without_a_font_of_any_size_does_not_stop_the_import(module, monkeypatch):
    """Before version 10.1, or built without FreeType: then no node of the pack would be there."""

    def load_default(size=None):
        raise ImportError("The _imagingft C module is not installed")

    monkeypatch.setattr(ImageFont, "load_default", load_default)

    importlib.reload(importlib.import_module(f"inner_guidance.{module}"))
