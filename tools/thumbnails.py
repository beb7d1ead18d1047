"""Draws the thumbnails of templates: `python -m tools.thumbnails [NUMBER ...]`.

Runs demo templates in the real ComfyUI and puts pictures of their output nodes into workflows/NAME.jpg, a
square. A template for a published model gets the pictures of its demo twin, and its caption says so.
"""

from __future__ import annotations

import io
import sys
import time
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from .demo import SCENES, for_scene
from .host_server import HostServer, HostServerError, Prompt
from .setup_host import ROOT, SetupError, host_folder
from .template_runs import template

FOLDER = ROOT / "workflows"
SIDE, CAPTION, FONT, QUALITY = 512, 40, 20, 82
PAPER, INK = "#161616", "#e4e4e4"
GAP = 4  # between the pictures of a sheet, as Image Grid leaves it
FILM_COLUMNS = 5

Scene = tuple[str, int, int]
"""A prompt, a seed, and the demo scene whose depth is kept, as in the scenes of `make demo`."""
Drawn = dict[str, list[Image.Image]]
"""What a template has drawn: the title of an output node -> its pictures."""


class Part(NamedTuple):
    """A picture of an output node, by the node's title and the picture's number.

    cell: (column, row) of a square in a sheet of squares of `side` pixels, whose rows are `row_gap` pixels
    apart; None is the whole picture.
    """

    title: str
    number: int = 0
    cell: tuple[int, int] | None = None
    side: int = 256
    row_gap: int = 0

    def of(self, drawn: Drawn) -> Image.Image:
        """The part of what a template has drawn."""
        picture = drawn[self.title][self.number]
        if self.cell is None:
            return picture
        left, top = self.cell[0] * (self.side + GAP), self.cell[1] * (self.side + self.row_gap)
        return picture.crop((left, top, left + self.side, top + self.side))


class Thumbnail(NamedTuple):
    """What a thumbnail shows: parts of what the template `source` draws, for one scene after the other."""

    source: str
    parts: tuple[Part, ...]
    caption: str
    scenes: tuple[Scene | None, ...] = (None,)
    """None is what the template ships."""
    columns: int = 2


def first_of(*titles: str) -> tuple[Part, ...]:
    """The first picture of each output node, whole."""
    return tuple(Part(title) for title in titles)


def in_sheet(title: str, column: int, rows: tuple[int, ...]) -> tuple[Part, ...]:
    """Squares of a column in a sheet."""
    return tuple(Part(title, cell=(column, row)) for row in rows)


def film(*steps: int) -> tuple[Part, ...]:
    """The image that *Watch depth form* draws, and the depth at these of its 20 steps, counted from 1."""
    cells = [((step - 1) % FILM_COLUMNS, (step - 1) // FILM_COLUMNS) for step in steps]
    frames = [Part("From noise to depth", cell=cell, side=128, row_gap=GAP) for cell in cells]
    return (Part("The image"), *frames)


def photo_and_depth(*numbers: int) -> tuple[Part, ...]:
    """Images of *Depth of an image*, each with the depth that is read from it, in colours."""
    pairs = [(Part(READ, cell=(number, 0)), Part("In colours", number)) for number in numbers]
    return tuple(part for pair in pairs for part in pair)


SAG = "01 Demo - Self-Attention Guidance"
SEES = "02 Demo - See what the model sees"
FORMS = "03 Demo - Watch depth form"
DEPTH = "04 Demo - Depth of an image"
LOCK = "05 Demo - Depth-locked restyle"
DAG = "06 Demo - Depth-Aware Guidance"
BOTH = "07 Demo - DAG + SAG"
CLASSIFIER = "08 Demo - Classifier guidance + SAG"
HEAD = "09 Demo - Train a depth head"
PRIOR = "10 Demo - Train a depth prior"
CLASSES = "11 Demo - Train a classifier head"
TRANSFORMER = "12 Demo - Depth lock on a transformer"

EIGHT_SEEDS: tuple[Scene, ...] = tuple(("", 2_000_000 + number, 0) for number in range(8))
"""The first of those that report results, of images without a prompt (docs/results/protocol.md)."""
WITH_SAG = first_of("No prompt, without guidance", "No prompt, with Self-Attention Guidance")
WITH_BOTH = first_of("Without guidance", "With both guidances")
SEEN = first_of("The image", "Where the model looks", "Where it sees the words", "What it tells apart")
FILM = film(4, 6, 8, 11, 20)
LOCKED = first_of("Without guidance", "With the depth locked", "Depth to keep", "Depth that came out")
WITH_DAG = first_of(
    "Without guidance", "With Depth-Aware Guidance", "Depth without guidance", "Depth with guidance"
)
READ, TRAINED = "Image, known depth, estimate", "Picture, known depth, what the head reads"
REPORT = first_of("Training report")

THUMBNAILS = {
    SAG: Thumbnail(SAG, WITH_SAG, "without | with SAG; Frechet distance 4.07 | 3.07", EIGHT_SEEDS, columns=4),
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
        LOCK, LOCKED, "demo model; below: depth to keep | depth drawn", (SCENES[0],)
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


def draw(server: HostServer, prompt: Prompt) -> Drawn:
    """All pictures of a graph."""
    return {
        prompt[node]["_meta"]["title"]: [Image.open(io.BytesIO(image)).convert("RGB") for image in images]
        for node, images in server.run(prompt).items()
    }


def pictures_of(
    server: HostServer,
    drawn: dict[tuple[str, Scene | None], Drawn],
    source: str,
    parts: tuple[Part, ...],
    scenes: tuple[Scene | None, ...],
) -> list[Image.Image]:
    """Parts of what the template `source` draws, for one scene after the other; `drawn` keeps all of it."""
    for scene in scenes:
        if (source, scene) not in drawn:
            prompt = template(source)
            drawn[source, scene] = draw(server, prompt if scene is None else for_scene(prompt, *scene))
    return [part.of(drawn[source, scene]) for scene in scenes for part in parts]


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
