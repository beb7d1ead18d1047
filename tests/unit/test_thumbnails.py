"""tools/thumbnails.py, and the thumbnails that it drew."""

import json
from pathlib import Path

import pytest
from PIL import Image

from inner_guidance.tools.template_pictures import GAP, Part
from inner_guidance.tools.template_runs import template
from inner_guidance.tools.thumbnails import SIDE, THUMBNAILS, square

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
MOST_BYTES = 60_000


def test_every_template_has_a_thumbnail_to_draw():
    assert list(THUMBNAILS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_demo_template_draws_the_parts(name):
    source, parts, caption, *_ = THUMBNAILS[name]
    nodes = template(source).values()
    drawing = [n["_meta"]["title"] for n in nodes if n["class_type"] in ("SaveImage", "PreviewImage")]

    assert "Demo" in source
    assert all(drawing.count(part.title) == 1 for part in parts)
    assert "Demo" in name or "demo" in caption


def test_squares_of_a_sheet_are_cut_where_they_meet():
    grids = {
        node["inputs"]["padding"]
        for name in NAMES
        for node in json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8")).values()
        if node["class_type"] == "ImageGrid"
    }
    assert grids == {GAP}


@pytest.mark.parametrize("row_gap", [0, GAP])
def test_a_part_is_a_square_of_a_sheet(row_gap):
    sheet = Image.new("RGB", (2 * 8 + GAP, 3 * 8 + 2 * row_gap))
    sheet.paste("white", (8 + GAP, 16 + 2 * row_gap, 16 + GAP, 24 + 2 * row_gap))
    part = Part("sheet", number=1, cell=(1, 2), side=8, row_gap=row_gap)

    assert part.of({"sheet": [Image.new("RGB", (8, 8)), sheet]}).getcolors() == [(64, (255, 255, 255))]


@pytest.mark.parametrize(("number", "columns"), [(1, 2), (2, 2), (3, 2), (4, 2), (6, 3), (16, 4)])
def test_pictures_fill_a_square(number, columns):
    picture = square([Image.new("RGB", (40, 30), "white")] * number, "caption", columns)

    assert picture.size == (SIDE, SIDE)
    assert sum(picture.convert("L").point(lambda value: value > 250).getdata()) > SIDE * SIDE / 4


@pytest.mark.parametrize("name", NAMES)
def test_thumbnail_is_a_small_square(name):
    file = FOLDER / f"{name}.jpg"

    assert Image.open(file).size == (SIDE, SIDE)
    assert file.stat().st_size < MOST_BYTES
