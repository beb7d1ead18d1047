"""tools/thumbnails.py, and the thumbnails that it drew."""

import json
from pathlib import Path

import pytest
from PIL import Image

from inner_guidance.tools.demo import SCENES
from inner_guidance.tools.template_runs import template
from inner_guidance.tools.thumbnails import GAP, SIDE, THUMBNAILS, Part, square

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
MOST_BYTES = 60_000


def test_every_template_has_a_thumbnail_to_draw():
    assert list(THUMBNAILS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_demo_template_draws_the_parts(name):
    source, parts, caption, scenes = THUMBNAILS[name]
    nodes = template(source).values()
    drawing = [n["_meta"]["title"] for n in nodes if n["class_type"] in ("SaveImage", "PreviewImage")]

    assert "Demo" in source
    assert all(drawing.count(part.title) == 1 for part in parts)
    assert all(scene is None or 0 <= scene < len(SCENES) for scene in scenes)
    assert "Demo" in name or "demo" in caption


def test_squares_of_a_sheet_are_cut_where_they_meet():
    grids = {
        node["inputs"]["padding"]
        for name in NAMES
        for node in json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8")).values()
        if node["class_type"] == "ImageGrid"
    }
    sheet = Image.new("RGB", (2 * 8 + GAP, 3 * 8))
    sheet.paste("white", (8 + GAP, 16, 16 + GAP, 24))

    assert grids == {GAP}
    assert Part("sheet", (1, 2), 8).of(sheet).getcolors() == [(64, (255, 255, 255))]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_pictures_fill_a_square(number):
    picture = square([Image.new("RGB", (40, 30), "white")] * number, "caption")

    assert picture.size == (SIDE, SIDE)
    assert sum(picture.convert("L").point(lambda value: value > 250).getdata()) > SIDE * SIDE / 4


@pytest.mark.parametrize("name", NAMES)
def test_thumbnail_is_a_small_square(name):
    file = FOLDER / f"{name}.jpg"

    assert Image.open(file).size == (SIDE, SIDE)
    assert file.stat().st_size < MOST_BYTES
