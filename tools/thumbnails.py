"""Draws the thumbnails of templates: `python -m tools.thumbnails [NUMBER ...]`.

Runs demo templates in the real ComfyUI and puts pictures of their output nodes into workflows/NAME.jpg, a
square. A template for a published model gets the pictures of its demo twin, and its caption says so.
"""

import io
import sys
import time
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from .demo import SCENES, for_scene
from .host_server import HostServer, HostServerError
from .setup_host import ROOT, SetupError, host_folder
from .template_runs import template

FOLDER = ROOT / "workflows"
SIDE, CAPTION, FONT, QUALITY = 512, 40, 20, 82
PAPER, INK = "#161616", "#e4e4e4"
GAP = 4  # between the pictures of a sheet, as Image Grid leaves it


class Part(NamedTuple):
    """A picture of an output node, by the node's title.

    cell: (column, row) of a square in a sheet of squares of `side` pixels; None is the whole picture.
    """

    title: str
    cell: tuple[int, int] | None = None
    side: int = 256

    def of(self, picture: Image.Image) -> Image.Image:
        """The part of the picture."""
        if self.cell is None:
            return picture
        left, top = self.cell[0] * (self.side + GAP), self.cell[1] * self.side
        return picture.crop((left, top, left + self.side, top + self.side))


class Thumbnail(NamedTuple):
    """What stands in a thumbnail: parts of what the template `source` draws, for one scene after the other.

    scenes: numbers of the scenes of `make demo`; None is what the template ships.
    """

    source: str
    parts: tuple[Part, ...]
    caption: str
    scenes: tuple[int | None, ...] = (None,)


def first_of(*titles: str) -> tuple[Part, ...]:
    """The first picture of each output node, whole."""
    return tuple(Part(title) for title in titles)


def image_over_depth(title: str, columns: tuple[int, int]) -> tuple[Part, ...]:
    """Two columns of a sheet: the images, and below them the depth that was read, the third row."""
    return tuple(Part(title, (column, row)) for row in (0, 2) for column in columns)


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

WITH_SAG = first_of("No prompt, without guidance", "No prompt, with Self-Attention Guidance")
WITH_BOTH = first_of("Without guidance", "With both guidances")
SEEN = first_of("The image", "Where the model looks", "Where it sees the words", "What it tells apart")
FILM = first_of("From noise to depth")
LOCKED = first_of("Without guidance", "With the depth locked", "Depth to keep", "Depth that came out")
WITH_DAG = first_of(
    "Without guidance", "With Depth-Aware Guidance", "Depth without guidance", "Depth with guidance"
)
READ, TRAINED = "Image, known depth, estimate", "Picture, known depth, what the head reads"
REPORT = first_of("Training report")

THUMBNAILS = {
    SAG: Thumbnail(SAG, WITH_SAG, "without and with guidance, no prompt", (0, 1)),
    SEES: Thumbnail(SEES, SEEN, "an image, attention, a word, features"),
    FORMS: Thumbnail(FORMS, FILM, "depth at each step"),
    DEPTH: Thumbnail(DEPTH, image_over_depth(READ, (0, 1)), "images, and the depth that is read"),
    LOCK: Thumbnail(LOCK, LOCKED, "without and with a depth to keep"),
    DAG: Thumbnail(DAG, WITH_DAG, "without and with guidance"),
    BOTH: Thumbnail(BOTH, WITH_BOTH, "without and with both guidances", (None, 3)),
    CLASSIFIER: Thumbnail(
        CLASSIFIER,
        first_of(
            "Without guidance",
            "With Classifier Guidance",
            "With Classifier Guidance and Self-Attention Guidance",
        ),
        "without, with the classifier, with both",
    ),
    HEAD: Thumbnail(HEAD, image_over_depth(TRAINED, (0, 1)), "images, and what the new head reads"),
    PRIOR: Thumbnail(
        PRIOR,
        first_of(
            "Without guidance", "With the new prior", "Depth without guidance", "Depth with the new prior"
        ),
        "without and with the new prior",
    ),
    CLASSES: Thumbnail(
        CLASSES,
        first_of("Without guidance", "Towards red", "Towards yellow"),
        "without, and towards classes of the new head",
    ),
    TRANSFORMER: Thumbnail(TRANSFORMER, LOCKED, "without and with a depth to keep"),
    "13 SAG on SD 1.5": Thumbnail(SAG, WITH_SAG, "SAG, here on the demo model, no prompt", (2, 3)),
    "14 SAG on SDXL": Thumbnail(SAG, WITH_SAG, "SAG, here on the demo model, no prompt", (4, 5)),
    "15 SAG + hires fix": Thumbnail(SAG, WITH_SAG, "SAG, here on the demo model, no prompt", (0, 5)),
    "16 See what SD 1.5 sees": Thumbnail(SEES, SEEN, "here of the demo model", (1,)),
    "17 Watch depth form": Thumbnail(FORMS, FILM, "depth at each step, here of the demo model", (1,)),
    "18 Depth of an image from SD 1.5": Thumbnail(
        DEPTH, image_over_depth(READ, (2, 3)), "depth that is read, here by the demo model"
    ),
    "19 Depth-locked restyle": Thumbnail(LOCK, LOCKED, "depth lock, here on the demo model"),
    "20 Depth-aware guidance on SD 1.5": Thumbnail(DAG, WITH_DAG, "DAG, here on the demo model", (1,)),
    "21 DAG + SAG": Thumbnail(BOTH, WITH_BOTH, "DAG + SAG, here on the demo model", (2, 3)),
    "22 Train a depth head on SD 1.5 with Depth Anything 3 labels": Thumbnail(
        HEAD, REPORT, "training report, here of the demo model"
    ),
    "23 Train a depth prior with Depth Anything 3 labels": Thumbnail(
        PRIOR, REPORT, "training report, here on demo scenes"
    ),
    "24 Depth lock + SAG on Z-Image": Thumbnail(LOCK, LOCKED, "depth lock, here on the demo model", (0,)),
    "25 Depth lock + SAG on Qwen-Image": Thumbnail(LOCK, LOCKED, "depth lock, here on the demo model", (1,)),
    "26 Depth lock + SAG on FLUX.2 Klein": Thumbnail(
        LOCK, LOCKED, "depth lock, here on the demo model", (3,)
    ),
    "27 Depth lock + SAG on Krea 2": Thumbnail(LOCK, LOCKED, "depth lock, here on the demo model"),
}
"""Template -> its thumbnail."""


def square(pictures: list[Image.Image], caption: str) -> Image.Image:
    """Pictures in two columns, one alone in full width, as large as they fit above a caption."""
    sheet = Image.new("RGB", (SIDE, SIDE), PAPER)
    columns = min(len(pictures), 2)
    rows = -(-len(pictures) // columns)
    width, height = SIDE // columns, (SIDE - CAPTION) // rows
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        in_row = min(columns, len(pictures) - row * columns)
        scale = min(width / picture.width, height / picture.height)
        fitted = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
        )
        left = (SIDE - in_row * width) // 2 + column * width
        sheet.paste(
            fitted, (left + (width - fitted.width) // 2, row * height + (height - fitted.height) // 2)
        )
    place = (SIDE / 2, SIDE - CAPTION / 2)
    ImageDraw.Draw(sheet).text(place, caption, INK, ImageFont.load_default(FONT), anchor="mm")
    return sheet


def draw(server: HostServer, source: str, scene: int | None) -> dict[str, Image.Image]:
    """The first picture of each output node of a demo template, by the node's title."""
    prompt = template(source)
    if scene is not None:
        prompt = for_scene(prompt, *SCENES[scene])
    files = server.run(prompt)
    return {
        prompt[node]["_meta"]["title"]: Image.open(io.BytesIO(images[0])).convert("RGB")
        for node, images in files.items()
    }


def pictures_of(
    server: HostServer,
    drawn: dict[tuple[str, int | None], dict[str, Image.Image]],
    source: str,
    parts: tuple[Part, ...],
    scenes: tuple[int | None, ...],
) -> list[Image.Image]:
    """Parts of what the template `source` draws, for one scene after the other; `drawn` keeps all of it."""
    for scene in scenes:
        if (source, scene) not in drawn:
            drawn[source, scene] = draw(server, source, scene)
    return [part.of(drawn[source, scene][part.title]) for scene in scenes for part in parts]


def main() -> None:
    """Draw all thumbnails, or those of the templates with the given numbers."""
    started, numbers = time.monotonic(), tuple(sys.argv[1:])
    (ROOT / ".demo").mkdir(exist_ok=True)
    drawn: dict[tuple[str, int | None], dict[str, Image.Image]] = {}
    with HostServer(host_folder(), ROOT, log=ROOT / ".demo" / "server.log") as server:
        for name, (source, parts, caption, scenes) in THUMBNAILS.items():
            if numbers and not name.startswith(numbers):
                continue
            pictures = pictures_of(server, drawn, source, parts, scenes)
            file = FOLDER / f"{name}.jpg"
            square(pictures, caption).save(file, quality=QUALITY, optimize=True, progressive=True)
            print(f"{file.stat().st_size / 1e3:4.0f} KB  {name}", flush=True)
    print(f"in {time.monotonic() - started:.0f} seconds: {FOLDER}")


if __name__ == "__main__":
    try:
        main()
    except (SetupError, HostServerError) as error:
        sys.exit(f"thumbnails: {error}")
