"""Which depth head should lead to a target: one that reads features, or one that reads latents?

    python -m tools.run experiments.latent_head      writes latent_head.md

The prompts describe the scenes that the target depth comes from. A depth network and a recogniser judge the
pictures; both were trained on renders alone. The seeds are not those of dag_experiment.py: settings may be
chosen by this table.

Pictures are kept in the work folder, so a second call resumes an interrupted one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from comfy.model_management import get_torch_device
from tqdm import tqdm

from ..demo import model as demo
from ..tools.setup_host import ROOT
from . import markdown
from .dag_rows import NONE, only
from .seeds import LATENT_HEAD_TUNING
from .target_pictures import BATCH, COLUMNS, Row, cells, checksums, kept, legend, targets_of

COMMAND = "python -m tools.run experiments.latent_head"
TABLE = ROOT / "docs" / "results" / "latent_head.md"
ROWS = {
    NONE: Row(None),
    "features": Row(demo.DEPTH_HEAD_FILE, only("target")),
    "latent, half as strong": Row(demo.LATENT_HEAD_FILE, only("target", 0.5)),
    "latent": Row(demo.LATENT_HEAD_FILE, only("target")),
    "latent, twice as strong": Row(demo.LATENT_HEAD_FILE, only("target", 2.0)),
}


def main() -> None:
    """Draws all rows, judges them, writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=64, help=f"in each row, a multiple of {BATCH}")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="draw these alone, and write no table")
    parser.add_argument("--work", type=Path, default=Path(".cache/latent_head"))
    options = parser.parse_args()
    with torch.inference_mode():
        targets = targets_of(LATENT_HEAD_TUNING[: options.pictures])
        rows = {name: row for name, row in ROWS.items() if name in (options.rows or ROWS)}
        drawn = {
            name: kept(options.work, demo.UNET, row, targets)
            for name, row in tqdm(rows.items(), desc="drawing")
        }
        if options.rows:
            return
        found = cells(drawn, targets)
    lines = [
        "# Features or latents: which head for a target?",
        "",
        f"`{COMMAND} --pictures {options.pictures}` on {get_torch_device()}; SHA-256 of "
        f"{checksums(demo.UNET)}.",
        "",
        *legend(options.pictures, demo.UNET),
        "",
        "These are tuning seeds, on which the latent head's form was chosen: a comparison, no figure to "
        "report.",
        "",
        *markdown.table(COLUMNS, found),
        "",
    ]
    TABLE.write_text("\n".join(lines), encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))
