"""Draws thumbnails of demo templates: `python -m tools.thumbnails [NUMBER ...]`.

Runs the templates as they are shipped, in the real ComfyUI, and puts pictures of their SaveImage nodes
side by side into workflows/NAME.jpg.
"""

import io
import sys
from collections.abc import Sequence

from PIL import Image

from .host_server import HostServer, HostServerError
from .setup_host import ROOT, SetupError, host_folder
from .template_runs import template

FOLDER = ROOT / "workflows"
SIDE, QUALITY = 256, 88
SHOWN = {
    "01 Demo - Self-Attention Guidance": ("Without guidance", "With Self-Attention Guidance"),
    "02 Demo - See what the model sees": (
        "Where the model looks",
        "Where it sees the words",
        "What it tells apart",
    ),
    "03 Demo - Watch depth form": ("From noise to depth",),
    "05 Demo - Depth-locked restyle": (
        "Without guidance",
        "With the depth locked",
        "Depth to keep",
        "Depth that came out",
    ),
    "06 Demo - Depth-Aware Guidance": (
        "Without guidance",
        "With Depth-Aware Guidance",
        "Depth without guidance",
        "Depth with guidance",
    ),
    "07 Demo - DAG + SAG": ("Without guidance", "With both guidances"),
    "08 Demo - Classifier guidance + SAG": (
        "Without guidance",
        "With Classifier Guidance",
        "With Classifier Guidance and Self-Attention Guidance",
    ),
}
"""Template -> the titles of the SaveImage nodes whose first picture is shown, in order."""


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size: up to three in a row, four in two rows; one picture as it is."""
    if len(pictures) == 1:
        return pictures[0]
    width = SIDE
    height = round(pictures[0].height * width / pictures[0].width)
    columns = 2 if len(pictures) == 4 else len(pictures)
    sheet = Image.new("RGB", (columns * width, len(pictures) // columns * height))
    for i, picture in enumerate(pictures):
        place = (i % columns * width, i // columns * height)
        sheet.paste(picture.resize((width, height), Image.Resampling.LANCZOS), place)
    return sheet


def main() -> None:
    """Draw the thumbnails of all templates in SHOWN, or of those with the given numbers."""
    numbers = tuple(sys.argv[1:])
    (ROOT / ".demo").mkdir(exist_ok=True)
    with HostServer(host_folder(), ROOT, log=ROOT / ".demo" / "server.log") as server:
        for name, titles in SHOWN.items():
            if numbers and not name.startswith(numbers):
                continue
            prompt = template(name)
            files = server.run(prompt)
            by_title = {prompt[node]["_meta"]["title"]: images[0] for node, images in files.items()}
            pictures = [Image.open(io.BytesIO(by_title[title])).convert("RGB") for title in titles]
            side_by_side(pictures).save(FOLDER / f"{name}.jpg", quality=QUALITY)
            print(name, flush=True)


if __name__ == "__main__":
    try:
        main()
    except (SetupError, HostServerError) as error:
        sys.exit(f"thumbnails: {error}")
