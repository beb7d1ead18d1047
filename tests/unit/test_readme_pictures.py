"""tools/readme_pictures.py, and the pictures that it drew."""

from pathlib import Path

from PIL import Image

from inner_guidance.tools.readme_pictures import HEADING, WIDTH, side_by_side, strip, word_maps

DOCS = Path(__file__).resolve().parents[2] / "docs"
WHITE = Image.new("RGB", (32, 32), "white")
RED = Image.new("RGB", (32, 32), "red")


def test_blocks_stand_side_by_side_under_their_headings():
    sheet = side_by_side({"without": [WHITE] * 3, "with": [RED] * 3}, columns=2)

    assert sheet.width == WIDTH
    assert sheet.getpixel((1, HEADING + 1)) == (255, 255, 255)
    assert sheet.getpixel((WIDTH - 5, HEADING + 1)) == (255, 0, 0)
    assert sheet.getpixel((WIDTH - 5, sheet.height - 5)) not in ((255, 0, 0), (255, 255, 255))  # the fourth


def test_pictures_of_a_strip_stand_in_one_row():
    sheet = strip([WHITE, WHITE, RED])

    assert [sheet.getpixel((round(WIDTH * share), 5)) for share in (0.1, 0.5, 0.9)] == [
        (255, 255, 255),
        (255, 255, 255),
        (255, 0, 0),
    ]


def test_maps_of_one_word_without_a_legend():
    maps = [n["inputs"] for n in word_maps(5).values() if n["class_type"] == "InnerAttentionMaps"]

    assert sorted(inputs["words"] for inputs in maps) == ["", "red"]
    assert not any(inputs["legend"] for inputs in maps)


def test_pictures_are_as_wide_as_the_page_shows_them():
    assert {Image.open(DOCS / f"{name}.jpg").width for name in ("sag", "inside")} == {WIDTH}
