"""What demo templates draw, and the parts of it that thumbnails, help pages and README show."""

from __future__ import annotations

import io
from typing import NamedTuple

from PIL import Image

from .demo import for_scene
from .host_server import HostServer, Prompt
from .template_runs import template

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
