"""The sheet shows every picture whole, under its caption."""

import numpy as np
import pytest
from PIL import Image

from inner_guidance.tools.contact_sheet import contact_sheet

COLOURS = ((200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200), (200, 0, 200))


def pictures(colours):
    return [Image.new("RGB", (96, 64), colour) for colour in colours]


def test_every_picture_is_there_unscaled_and_in_its_place():
    sheet = np.asarray(
        contact_sheet(
            ["a", "b", "a caption that needs more than one line"],
            {"plain": pictures(COLOURS[:3]), "guided": pictures(COLOURS[3:])},
        )
    )

    corners = []
    for colour in COLOURS:
        rows, columns = np.nonzero((sheet == colour).all(axis=-1))
        assert len(rows) == 96 * 64
        corners.append((rows.min(), columns.min()))
    top, bottom = corners[:3], corners[3:]
    assert len({y for y, _ in top}) == len({y for y, _ in bottom}) == 1
    assert top[0][0] + 64 < bottom[0][0]
    assert [x for _, x in top] == [x for _, x in bottom] == sorted(x for _, x in top)


def test_long_captions_push_the_pictures_down_and_not_sideways():
    short = contact_sheet(["a"], {"plain": pictures(COLOURS[:1])})
    long = contact_sheet(["a long caption " * 5], {"plain": pictures(COLOURS[:1])})

    assert long.width == short.width
    assert long.height > short.height


def test_a_missing_picture_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        contact_sheet(["a", "b"], {"plain": pictures(COLOURS[:1])})


def test_rows_may_differ_in_height():
    tall = [Image.new("RGB", (96, 120), colour) for colour in COLOURS[:2]]
    sheet = np.asarray(contact_sheet(["a", "b"], {"tall": tall, "low": pictures(COLOURS[2:4])}))

    for colour, height in zip(COLOURS[:4], (120, 120, 64, 64), strict=True):
        assert (sheet == colour).all(axis=-1).sum() == 96 * height
