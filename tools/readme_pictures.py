"""Draws the pictures of the README: `python -m tools.readme_pictures`.

docs/sag.jpg has eight consecutive seeds without guidance and, next to them, with Self-Attention Guidance.
docs/inside.jpg has an image, where the model sees a word of the prompt, and the depth at five steps.
"""

import sys
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from .demo import for_scene, node_titled
from .host_server import HostServer, HostServerError, Prompt
from .setup_host import ROOT, SetupError, host_folder
from .template_pictures import (
    EIGHT_SEEDS,
    FILM,
    FORMS,
    GAP,
    INK,
    PAPER,
    SAG,
    SEES,
    WITH_SAG,
    Drawn,
    Part,
    Scene,
    draw,
    pictures_of,
)
from .template_runs import template

FOLDER = ROOT / "docs"
WIDTH, QUALITY = 1280, 85
HEADING, FONT, BETWEEN = 36, 20, 24
WORD = "red"


def side_by_side(blocks: Mapping[str, Sequence[Image.Image]], columns: int) -> Image.Image:
    """Two blocks of pictures under their headings, each of them in rows of `columns`."""
    side = ((WIDTH - BETWEEN) // 2 - GAP * (columns - 1)) // columns
    rows = -(-max(map(len, blocks.values())) // columns)
    sheet = Image.new("RGB", (WIDTH, HEADING + rows * (side + GAP) - GAP), PAPER)
    for left, (heading, pictures) in zip((0, (WIDTH + BETWEEN) // 2), blocks.items(), strict=True):
        place = (left + (WIDTH - BETWEEN) / 4, HEADING / 2)
        ImageDraw.Draw(sheet).text(place, heading, INK, ImageFont.load_default(FONT), anchor="mm")
        for number, picture in enumerate(pictures):
            row, column = divmod(number, columns)
            fitted = picture.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(fitted, (left + column * (side + GAP), HEADING + row * (side + GAP)))
    return sheet


def strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """Square pictures in one row."""
    side = (WIDTH - GAP * (len(pictures) - 1)) // len(pictures)
    sheet = Image.new("RGB", (WIDTH, side), PAPER)
    for number, picture in enumerate(pictures):
        sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (number * (side + GAP), 0))
    return sheet


def word_maps(seed: int) -> Prompt:
    """*See what the model sees* for the prompt of *Watch depth form*, with the map of WORD alone."""
    text = node_titled(template(FORMS), "Prompt")["text"]
    prompt = for_scene(template(SEES), text, seed, 0)
    for node in prompt.values():
        if node["class_type"] == "InnerAttentionMaps":
            node["inputs"] |= {"legend": False} | ({"words": WORD} if "clip" in node["inputs"] else {})
    return prompt


def main() -> None:
    """Draw both pictures."""
    (ROOT / ".demo").mkdir(exist_ok=True)
    with HostServer(host_folder(), ROOT, log=ROOT / ".demo" / "server.log") as server:
        drawn: dict[tuple[str, Scene | None], Drawn] = {}
        without, guided = (pictures_of(server, drawn, SAG, (part,), EIGHT_SEEDS) for part in WITH_SAG)
        image, *depths = pictures_of(server, drawn, FORMS, FILM, (None,))
        seed = node_titled(template(FORMS), "Seed")["value"]
        seen = Part("Where it sees the words").of(draw(server, word_maps(seed)))
    blocks = {"without guidance": without, "with Self-Attention Guidance": guided}
    for name, sheet in {"sag": side_by_side(blocks, 4), "inside": strip([image, seen, *depths])}.items():
        file = FOLDER / f"{name}.jpg"
        sheet.save(file, quality=QUALITY, optimize=True, progressive=True)
        print(f"{file.stat().st_size / 1e3:4.0f} KB  {file.name}")


if __name__ == "__main__":
    try:
        main()
    except (SetupError, HostServerError) as error:
        sys.exit(f"readme pictures: {error}")
