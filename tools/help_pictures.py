"""Draws the pictures of help pages: `python -m tools.help_pictures [NODE ID ...]`.

Runs demo templates in the real ComfyUI and puts pictures of their output nodes into web/docs/NODE ID.jpg. The
page of a node shows it next to its text.
"""

import sys
from typing import NamedTuple

from PIL import Image

from .demo import SCENES
from .host_server import HostServer, HostServerError
from .setup_host import ROOT, SetupError, host_folder
from .template_pictures import (
    CLASSES,
    CLASSIFIER,
    DEPTH,
    EIGHT_SEEDS,
    FILM,
    FORMS,
    GAP,
    HEAD,
    LOCK,
    LOCKED,
    PAPER,
    PRIOR,
    READ,
    REPORT,
    SAG,
    SEES,
    WITH_SAG,
    Drawn,
    Part,
    Scene,
    first_of,
    photo_and_depth,
    pictures_of,
)

FOLDER = ROOT / "web" / "docs"
WIDTH, QUALITY = 512, 80


class HelpPicture(NamedTuple):
    """Parts of what the template `source` draws, for one scene after the other, in rows of `columns`.

    scenes: None is what the template ships.
    """

    source: str
    parts: tuple[Part, ...]
    columns: int
    scenes: tuple[Scene | None, ...] = (None,)


PICTURES = {
    "InnerSelfAttentionGuidance": HelpPicture(SAG, WITH_SAG, 4, EIGHT_SEEDS),
    "InnerDepthAwareGuidance": HelpPicture(LOCK, LOCKED, 2),
    "InnerClassifierGuidance": HelpPicture(
        CLASSIFIER, first_of("Without guidance", "With Classifier Guidance"), 2
    ),
    "InnerRecordAttention": HelpPicture(SEES, first_of("Where the model looks"), 2, (SCENES[1], SCENES[3])),
    "InnerAttentionMaps": HelpPicture(SEES, first_of("Where the model looks", "Where it sees the words"), 2),
    "InnerAttentionSpectrum": HelpPicture(SEES, first_of("Does it look where the detail is?"), 1),
    "InnerRecordFeatures": HelpPicture(FORMS, FILM, 3),
    "InnerFeatureMaps": HelpPicture(SEES, first_of("The image", "What it tells apart"), 2),
    "InnerDepthEstimate": HelpPicture(DEPTH, photo_and_depth(0, 1), 2),
    "InnerTrainDepthHead": HelpPicture(HEAD, REPORT, 1),
    "InnerTrainDepthPrior": HelpPicture(PRIOR, REPORT, 1),
    "InnerTrainClassifierHead": HelpPicture(CLASSES, REPORT, 1),
    "InnerLoadDemoModel": HelpPicture(SEES, first_of("The image"), 3, SCENES),
    "InnerDemoScenes": HelpPicture(
        DEPTH, tuple(Part(READ, cell=(column, row)) for row in (0, 1) for column in (0, 1, 2)), 3
    ),
}
"""Node id -> the picture of its help page. Nodes that only load or save a file have none."""


def sheet(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Pictures in rows, as wide as each other; those of a row end at the same height."""
    width = (WIDTH - GAP * (columns - 1)) // columns
    fitted = [
        picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
        for picture in pictures
    ]
    height = max(picture.height for picture in fitted)
    rows = -(-len(fitted) // columns)
    paper = Image.new("RGB", (WIDTH, rows * (height + GAP) - GAP), PAPER)
    for number, picture in enumerate(fitted):
        row, column = divmod(number, columns)
        bottom = row * (height + GAP) + height
        paper.paste(picture, (column * (width + GAP), bottom - picture.height))
    return paper


def main() -> None:
    """Draw the pictures of all nodes, or of those that are named."""
    nodes = sys.argv[1:] or list(PICTURES)
    (ROOT / ".demo").mkdir(exist_ok=True)
    drawn: dict[tuple[str, Scene | None], Drawn] = {}
    with HostServer(host_folder(), ROOT, log=ROOT / ".demo" / "server.log") as server:
        for node in nodes:
            source, parts, columns, scenes = PICTURES[node]
            pictures = pictures_of(server, drawn, source, parts, scenes)
            file = FOLDER / f"{node}.jpg"
            sheet(pictures, columns).save(file, quality=QUALITY, optimize=True, progressive=True)
            print(f"{file.stat().st_size / 1e3:4.0f} KB  {file.name}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (SetupError, HostServerError) as error:
        sys.exit(f"help pictures: {error}")
