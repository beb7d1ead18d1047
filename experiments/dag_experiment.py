"""Does depth-aware guidance help (DAG, section 4)? And how strong should it be?

    python -m tools.run experiments.dag_experiment sweep      writes depth_aware_guidance_sweep.md
    python -m tools.run experiments.dag_experiment compare    writes depth_aware_guidance.md
    python -m tools.run experiments.dag_experiment hinge      writes calibrated_losses.md
    python -m tools.run experiments.dag_experiment objects    writes targets_that_keep_objects.md

`compare` draws reporting seeds, the others tuning seeds (docs/results/protocol.md). All rows of a table draw
the same ones with the demo model, through the node. A depth network estimates the depth of the pictures; it
was trained on renders alone (demo/depth_judge.py) and never saw the UNet. Two more rows frame the figures:
renders after the autoencoder, without the UNet's faults, and the same renders bent, with broken geometry.

Pictures are kept in the work folder and measured from there, so a second call resumes an interrupted one. Two
processes share the work if one of them runs with --backwards.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path

import torch
from comfy.model_management import get_torch_device
from tqdm import tqdm

from ..tools.setup_host import ROOT
from .dag_judges import Judges
from .dag_pictures import BATCH, Drawings
from .dag_rows import NONE, Group, compared, hinged, swept
from .dag_table import LEGEND, table
from .target_rows import kept

COMMAND = "python -m tools.run experiments.dag_experiment"
GROUPS = {"sweep": swept, "compare": compared, "hinge": hinged, "objects": kept}
TITLES = {
    "sweep": "Strength of depth-aware guidance",
    "compare": "Does depth guidance help?",
    "hinge": "Should guidance stop at the level of real images?",
    "objects": "Can a target keep the objects of the prompt?",
}
TABLES = {
    "sweep": ROOT / "docs" / "results" / "depth_aware_guidance_sweep.md",
    "compare": ROOT / "docs" / "results" / "depth_aware_guidance.md",
    "hinge": ROOT / "docs" / "results" / "calibrated_losses.md",
    "objects": ROOT / "docs" / "results" / "targets_that_keep_objects.md",
}


def main() -> None:
    """Draws the missing pictures, judges all of them, writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=GROUPS)
    parser.add_argument("--groups", nargs="+", help="tables; all by default")
    parser.add_argument("--rows", nargs="+", help="rows besides that without guidance; all by default")
    parser.add_argument("--samples", type=int, help="pictures in each row, instead of the table's own")
    parser.add_argument("--steps", type=int, help="sampling steps, instead of the table's own")
    parser.add_argument(
        "--backwards", action="store_true", help="draw from the end and write no table: for a second process"
    )
    parser.add_argument("--work", type=Path, default=Path(".cache/depth_aware_guidance"))
    parser.add_argument("--out", type=Path, help="file for the tables, instead of the one in docs/results/")
    options = parser.parse_args()
    groups = GROUPS[options.command]()
    unknown = {*(options.groups or ())} - {*groups}
    unknown |= {*(options.rows or ())} - {name for group in groups.values() for name in group.rows}
    if unknown:
        parser.error(f"There is no {' and no '.join(sorted(unknown))}. The groups are {', '.join(groups)}.")
    changed = {name: getattr(options, name) for name in ("samples", "steps") if getattr(options, name)}
    groups = {
        name: replace(
            group,
            rows={
                row: settings
                for row, settings in group.rows.items()
                if row == NONE or row in (options.rows or group.rows)
            },
            **changed,
        )
        for name, group in groups.items()
        if name in (options.groups or groups)
    }
    work = options.work.resolve()
    with torch.inference_mode():
        drawings = Drawings(work)
        jobs = [
            (group, row, first)
            for group in groups.values()
            for row in group.rows
            for first in group.batches(BATCH)
        ]
        for job in tqdm(jobs[::-1] if options.backwards else jobs, desc="drawing", unit="batch"):
            drawings.draw(*job)
        if options.backwards:
            return
        judges = Judges(drawings)
        lines = heading(options, judges, max(groups.values(), key=lambda group: group.samples))
        for name, group in groups.items():
            lines += table(judges, group, drawings.seconds(group) if options.command == "compare" else {})
            judges.write_sheets(f"{options.command}-{name}", group)
    out = options.out or TABLES[options.command]
    out.write_text("\n".join(lines), encoding="utf-8")
    print(out.read_text(encoding="utf-8"))


def heading(options: argparse.Namespace, judges: Judges, largest: Group) -> list[str]:
    """Title, command and legend of the tables, and how well the judge does on the largest group's renders."""
    judged = judges.judge_accuracy(largest.seeds, largest.samples)
    files = ("unet", "depth_head", "depth_prior", "depth_judge")
    trial = [f"--{name} {getattr(options, name)}" for name in ("samples", "steps") if getattr(options, name)]
    for name in ("groups", "rows"):
        if getattr(options, name):
            trial += [f"--{name}", *(shlex.quote(value) for value in getattr(options, name))]
    return [
        f"# {TITLES[options.command]}",
        "",
        f"`{' '.join([COMMAND, options.command, *trial])}` on {get_torch_device()}; SHA-256 of "
        + ", ".join(f"{name} begins {judges.drawings.checksums[name]}" for name in files)
        + ".",
        "",
        *LEGEND,
        "",
        f"The judge on {largest.samples} renders that it never saw: "
        + "; ".join(f"{name}: {metrics}" for name, metrics in judged.items())
        + ".",
        "",
    ]
