"""A sheet of what SAG does: eight consecutive reporting seeds, without it above, with it below.

    python -m tools.run experiments.sag_sheet OUT [--group captions-3] [--row "SAG, chosen"]

The rows are those of sag_experiment.py, so that its table has the figures of what the sheet shows. Seeds are
not picked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from ..demo import model as demo
from ..demo.sheet import decode, save_sheet
from .sag_drawing import SagDrawing
from .sag_rows import NONE, reported

COLUMNS = 8


def main() -> None:
    """Draws the sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="PNG or JPEG file")
    parser.add_argument("--family", choices=demo.FAMILIES, default=demo.UNET)
    parser.add_argument("--group", default="empty", help="table of sag_experiment.py")
    parser.add_argument("--row", default="SAG", help="row of that table")
    parser.add_argument("--size", type=int, default=160, help="side of a picture in pixels")
    options = parser.parse_args()
    group = reported(options.family != demo.UNET)[options.group]
    with torch.inference_mode():
        drawing = SagDrawing(Path(), options.family, torch.float32)
        seeds = group.seeds[:COLUMNS]
        rows = [decode(drawing.vae, drawing.sample(group, row, seeds)[0]) for row in (NONE, options.row)]
    pictures = F.interpolate(torch.cat(rows).movedim(-1, 1) / 255, (options.size,) * 2, mode="area")
    save_sheet(pictures.movedim(1, -1), options.out, COLUMNS)
