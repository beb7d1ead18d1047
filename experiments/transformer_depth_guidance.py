"""Does the demo transformer follow a target depth?

    python -m tools.run experiments.transformer_depth_guidance      writes transformer_depth_guidance.md

Tuning seeds choose the strength; reporting seeds report it, with plain sampling that takes as long.
The pictures are kept in the work folder, so a second call resumes an interrupted one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from comfy.model_management import get_torch_device
from tqdm import tqdm

from ..demo import model as demo
from ..tools.setup_host import ROOT
from . import markdown
from .dag_rows import EQUAL_COST, NONE, only
from .seeds import REPORTING, TUNING
from .target_pictures import BATCH, COLUMNS, STEPS, Row, cells, checksums, kept, legend, targets_of

COMMAND = "python -m tools.run experiments.transformer_depth_guidance"
TABLE = ROOT / "docs" / "results" / "transformer_depth_guidance.md"
FAMILY = "transformer"
FEATURES = demo.FAMILIES[FAMILY].depth_head
BLURRED = "features, 1, blurred"
SWEPT = {
    NONE: Row(None),
    **{f"features, {scale:g}": Row(FEATURES, only("target", scale)) for scale in (0.5, 1.0, 2.0)},
    BLURRED: Row(FEATURES, only("target") | {"target_blur": 0.125}),
    **{f"latent, {scale:g}": Row(demo.LATENT_HEAD_FILE, only("target", scale)) for scale in (0.5, 1.0, 2.0)},
}
"""Heads, and the node's scale of the target; blurred: with a target_blur of 0.125."""
REPORTED = {
    NONE: Row(None),
    EQUAL_COST: Row(None, steps=17),
    "features, 1": Row(FEATURES, only("target")),
    BLURRED: SWEPT[BLURRED],
    "latent, 1": Row(demo.LATENT_HEAD_FILE, only("target")),
}
GROUPS: Mapping[str, tuple[Mapping[str, Row], range]] = {
    "Tuning seeds": (SWEPT, TUNING),
    "Reporting seeds": (REPORTED, REPORTING),
}


def main() -> None:
    """Draws all rows, judges them, writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=32, help=f"in each row, a multiple of {BATCH}")
    parser.add_argument("--work", type=Path, default=Path(".cache/transformer_depth_guidance"))
    options = parser.parse_args()
    lines = [
        "# Does the demo transformer follow a target depth?",
        "",
        f"`{COMMAND} --pictures {options.pictures}` on {get_torch_device()}; SHA-256 of {checksums(FAMILY)}.",
        "",
        *legend(options.pictures, FAMILY),
        "",
        f"A row is named by its head and the node's target scale; blurred: target_blur 0.125. {EQUAL_COST}: "
        f"{REPORTED[EQUAL_COST].steps} steps instead of {STEPS}.",
        "",
    ]
    for title, (rows, seeds) in GROUPS.items():
        with torch.inference_mode():
            targets = targets_of(seeds[: options.pictures])
            drawn = {
                name: kept(options.work, FAMILY, row, targets) for name, row in tqdm(rows.items(), desc=title)
            }
            found = cells(drawn, targets)
        lines += [f"## {title}", "", *markdown.table(COLUMNS, found), ""]
    TABLE.write_text("\n".join(lines), encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))
