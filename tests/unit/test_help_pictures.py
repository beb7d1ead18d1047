"""tools/help_pictures.py, and the pictures of the help pages that it drew."""

import pytest
from PIL import Image

from inner_guidance.tools.help_pictures import FOLDER, GAP, PICTURES, WIDTH, sheet
from inner_guidance.tools.template_runs import template


@pytest.mark.parametrize("node", PICTURES)
def test_the_demo_template_uses_the_node_and_draws_the_parts(node):
    nodes = template(PICTURES[node].source).values()
    drawing = [n["_meta"]["title"] for n in nodes if n["class_type"] in ("SaveImage", "PreviewImage")]

    assert node in {n["class_type"] for n in nodes}
    assert all(drawing.count(part.title) == 1 for part in PICTURES[node].parts)


def test_pictures_are_drawn_and_small():
    sizes = {path.stem: path.stat().st_size for path in FOLDER.glob("*.jpg")}

    assert sizes.keys() == PICTURES.keys()
    assert all((FOLDER / f"{node}.md").is_file() for node in PICTURES)
    assert all(size < 40_000 for size in sizes.values())
    assert sum(sizes.values()) < 300_000


def test_pictures_of_a_row_end_at_the_same_height():
    white = [Image.new("RGB", (50, height), "white") for height in (50, 60)]

    drawn = sheet(white, 2)

    side = (WIDTH - GAP) // 2
    assert drawn.width == WIDTH
    assert drawn.height == round(side * 60 / 50)
    assert drawn.getpixel((side // 2, drawn.height - 1)) == (255, 255, 255)
    assert drawn.getpixel((side // 2, 0)) != (255, 255, 255)
