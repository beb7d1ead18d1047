"""Draws the thumbnails of templates: `python -m tools.thumbnails [NUMBER ...]`.

Runs demo templates in the real ComfyUI and puts pictures of their output nodes into workflows/NAME.jpg, a
square. A template for a published model gets the pictures of its demo twin, and its caption says so.
"""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from .demo import SCENES
from .host_server import HostServer, HostServerError
from .setup_host import ROOT, SetupError, host_folder
from .template_pictures import (
    BOTH,
    CLASSES,
    CLASSIFIER,
    DAG,
    DEPTH,
    EIGHT_SEEDS,
    FILM,
    FORMS,
    HEAD,
    INK,
    LOCK,
    LOCKED,
    PAPER,
    PRIOR,
    REPORT,
    SAG,
    SEEN,
    SEES,
    TRAINED,
    TRANSFORMER,
    WITH_BOTH,
    WITH_DAG,
    WITH_SAG,
    Drawn,
    Part,
    Scene,
    first_of,
    in_sheet,
    photo_and_depth,
    pictures_of,
)

FOLDER = ROOT / "workflows"
SIDE, CAPTION, FONT, QUALITY = 512, 40, 20, 82


class Thumbnail(NamedTuple):
    """What a thumbnail shows: parts of what the template `source` draws, for one scene after the other."""

    source: str
    parts: tuple[Part, ...]
    caption: str
    scenes: tuple[Scene | None, ...] = (None,)
    """None is what the template ships."""
    columns: int = 2


THUMBNAILS = {
    SAG: Thumbnail(SAG, WITH_SAG, "without | with SAG; Frechet distance 4.32 | 3.48", EIGHT_SEEDS, columns=4),
    SEES: Thumbnail(SEES, SEEN, "an image, attention, a word, features"),
    FORMS: Thumbnail(FORMS, FILM, "an image, and its depth as it forms", columns=3),
    DEPTH: Thumbnail(DEPTH, photo_and_depth(0, 1), "images, and the depth that is read"),
    LOCK: Thumbnail(LOCK, LOCKED, "below: the depth to keep | the depth drawn"),
    DAG: Thumbnail(DAG, WITH_DAG, "without | with guidance, a subtle change"),
    BOTH: Thumbnail(BOTH, WITH_BOTH, "without and with both guidances", (None, SCENES[3])),
    CLASSIFIER: Thumbnail(
        CLASSIFIER,
        first_of(
            "Without guidance",
            "With Classifier Guidance",
            "With Classifier Guidance and Self-Attention Guidance",
        ),
        "without, with the classifier, with both",
    ),
    HEAD: Thumbnail(HEAD, in_sheet(TRAINED, 1, (0, 1, 2)), "image, its depth, what the new head reads"),
    PRIOR: Thumbnail(
        PRIOR,
        first_of(
            "Without guidance", "With the new prior", "Depth without guidance", "Depth with the new prior"
        ),
        "without | with the new prior, a subtle change",
    ),
    CLASSES: Thumbnail(
        CLASSES,
        first_of("Without guidance", "Towards red", "Towards yellow"),
        "without, and towards classes of the new head",
    ),
    TRANSFORMER: Thumbnail(TRANSFORMER, LOCKED, "below: the depth to keep | the depth drawn"),
    "13 SAG on SD 1.5": Thumbnail(
        SAG, WITH_SAG, "SAG, here on the demo model, no prompt", (SCENES[2], SCENES[3])
    ),
    "14 SAG on SDXL": Thumbnail(
        SAG, WITH_SAG, "SAG, here on the demo model, no prompt", (SCENES[4], SCENES[5])
    ),
    "15 SAG + hires fix": Thumbnail(
        SAG, WITH_SAG, "SAG, here on the demo model, no prompt", (SCENES[0], SCENES[5])
    ),
    "16 See what SD 1.5 sees": Thumbnail(SEES, SEEN, "here of the demo model", (SCENES[1],)),
    "17 Watch depth form": Thumbnail(
        FORMS, FILM, "depth as it forms, here of the demo model", (SCENES[1],), columns=3
    ),
    "18 Depth of an image from SD 1.5": Thumbnail(
        DEPTH, photo_and_depth(2, 3), "depth that is read, here by the demo model"
    ),
    "19 Depth-locked restyle": Thumbnail(LOCK, LOCKED, "demo model; below: depth to keep | depth drawn"),
    "20 Depth-aware guidance on SD 1.5": Thumbnail(
        LOCK, LOCKED, "demo model; below: depth to keep | depth drawn", (SCENES[3],)
    ),
    "21 DAG + SAG": Thumbnail(BOTH, WITH_BOTH, "DAG + SAG, here on the demo model", (SCENES[2], SCENES[3])),
    "22 Train a depth head on SD 1.5 with Depth Anything 3 labels": Thumbnail(
        HEAD, REPORT, "training report, here of the demo model"
    ),
    "23 Train a depth prior with Depth Anything 3 labels": Thumbnail(
        PRIOR, REPORT, "training report, here on demo scenes"
    ),
    "24 Depth lock + SAG on Z-Image": Thumbnail(
        LOCK, LOCKED, "demo model; below: depth to keep | depth drawn"
    ),
    "25 Depth lock + SAG on Qwen-Image": Thumbnail(
        LOCK, LOCKED, "demo model; below: depth to keep | depth drawn", (SCENES[1],)
    ),
    "26 Depth lock + SAG on FLUX.2 Klein": Thumbnail(
        LOCK, LOCKED, "demo model; below: depth to keep | depth drawn", (SCENES[3],)
    ),
    "27 Depth lock + SAG on Krea 2": Thumbnail(
        LOCK, LOCKED, "demo model; below: depth to keep | depth drawn"
    ),
}
"""Template -> its thumbnail."""


def square(pictures: list[Image.Image], caption: str, columns: int) -> Image.Image:
    """Pictures in columns, one alone in full width, as large as they fit above a caption."""
    sheet = Image.new("RGB", (SIDE, SIDE), PAPER)
    columns = min(len(pictures), columns)
    rows = -(-len(pictures) // columns)
    width = SIDE // columns
    fitted = [
        ImageOps.contain(picture, (width, (SIDE - CAPTION) // rows), Image.Resampling.LANCZOS)
        for picture in pictures
    ]
    height = max(picture.height for picture in fitted)
    above = (SIDE - CAPTION - rows * height) // 2
    for number, picture in enumerate(fitted):
        row, column = divmod(number, columns)
        in_row = min(columns, len(pictures) - row * columns)
        left = (SIDE - in_row * width) // 2 + column * width + (width - picture.width) // 2
        sheet.paste(picture, (left, above + row * height + (height - picture.height) // 2))
    place = (SIDE / 2, SIDE - CAPTION / 2)
    ImageDraw.Draw(sheet).text(place, caption, INK, ImageFont.load_default(FONT), anchor="mm")
    return sheet


def main() -> None:
    """Draw all thumbnails, or those of the templates with the given numbers."""
    started, numbers = time.monotonic(), tuple(sys.argv[1:])
    (ROOT / ".demo").mkdir(exist_ok=True)
    drawn: dict[tuple[str, Scene | None], Drawn] = {}
    with HostServer(host_folder(), ROOT, log=ROOT / ".demo" / "server.log") as server:
        for name, (source, parts, caption, scenes, columns) in THUMBNAILS.items():
            if numbers and not name.startswith(numbers):
                continue
            pictures = pictures_of(server, drawn, source, parts, scenes)
            file = FOLDER / f"{name}.jpg"
            square(pictures, caption, columns).save(file, quality=QUALITY, optimize=True, progressive=True)
            print(f"{file.stat().st_size / 1e3:4.0f} KB  {name}", flush=True)
    print(f"in {time.monotonic() - started:.0f} seconds: {FOLDER}")


if __name__ == "__main__":
    try:
        main()
    except (SetupError, HostServerError) as error:
        sys.exit(f"thumbnails: {error}")
