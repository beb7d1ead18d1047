"""Does depth-aware guidance help (DAG, section 4)? And how strong should it be?

    python -m tools.run experiments.dag_experiment sweep      writes depth_aware_guidance_sweep.md
    python -m tools.run experiments.dag_experiment compare    writes depth_aware_guidance.md
    python -m tools.run experiments.dag_experiment hinge      writes calibrated_losses.md
    python -m tools.run experiments.dag_experiment seeds      writes priors_and_heads_of_other_seeds.md
    python -m tools.run experiments.dag_experiment screen     writes targets_screened.md
    python -m tools.run experiments.dag_experiment objects    writes targets_that_keep_objects.md

`sweep` and `screen` draw tuning seeds, the others reporting seeds (docs/results/protocol.md). All rows of a
table draw the same ones with a demo model, through the node: the UNet or, with --family, the transformer. A
depth network estimates the depth of the pictures; it was trained on renders alone (demo/depth_judge.py) and
never saw either model. Two more rows frame the figures: renders after the autoencoder, without the model's
faults, and the same renders bent, with broken geometry.

Pictures and what the judges see in them are kept in the work folder, so a second call resumes an interrupted
one. All rows of a table grow together, and a table has as many pictures as every row has. Two processes share
the work with --part 0/2 and --part 1/2, which write no table. With --minutes 0 the tables have what is drawn.

The same for the weaker UNet of an earlier commit, whose images are worse:

    mkdir -p .cache/weaker
    for file in unet depth_head; do
        git show b87f5d2^:demo/weights/$file.safetensors > .cache/weaker/$file.safetensors; done
    python -m tools.run demo.train_depth calibrate --out .cache/weaker
    python -m tools.run experiments.dag_experiment compare --weights .cache/weaker --groups empty captions
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from comfy.model_management import get_torch_device
from tqdm import tqdm

from ..demo import model as demo
from ..tools.setup_host import ROOT
from .dag_judges import Judges
from .dag_pictures import BATCH, Drawings
from .dag_rows import NONE, Group, compared, hinged
from .dag_table import LEGEND, table
from .other_seeds import missing_files, of_other_seeds
from .seeds import TUNING
from .swept_rows import swept
from .target_rows import kept, screened

COMMAND = "python -m tools.run experiments.dag_experiment"
GROUPS = {
    "sweep": swept,
    "compare": compared,
    "hinge": hinged,
    "seeds": of_other_seeds,
    "screen": screened,
    "objects": kept,
}
TITLES = {
    "sweep": "Strength of depth-aware guidance",
    "compare": "Does depth guidance help?",
    "hinge": "Should guidance stop at the level of real images?",
    "seeds": "Do other priors and heads do the same?",
    "screen": "Which target keeps the objects of the prompt?",
    "objects": "Does a target keep the objects of the prompt?",
}
FILES = {
    "sweep": "depth_aware_guidance_sweep",
    "compare": "depth_aware_guidance",
    "hinge": "calibrated_losses",
    "seeds": "priors_and_heads_of_other_seeds",
    "screen": "targets_screened",
    "objects": "targets_that_keep_objects",
}


def argument_parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=GROUPS)
    parser.add_argument("--family", choices=demo.FAMILIES, default=demo.UNET)
    parser.add_argument("--groups", nargs="+", help="tables; all by default")
    parser.add_argument("--rows", nargs="+", help="rows besides that without guidance; all by default")
    parser.add_argument("--samples", type=int, help="pictures in each row, instead of the table's own")
    parser.add_argument("--steps", type=int, help="sampling steps, instead of the table's own")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="precision of the model"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="draw no longer than this")
    parser.add_argument(
        "--weights",
        type=Path,
        default=demo.WEIGHTS,
        help="folder of files that replace those in demo/weights",
    )
    parser.add_argument("--part", default="0/1", help="such as 0/2: draw every second batch, write no table")
    parser.add_argument("--work", type=Path, default=Path(".cache/depth_aware_guidance"))
    parser.add_argument("--out", type=Path, help="file for the tables, instead of the one in docs/results/")
    return parser


def chosen_groups(options: argparse.Namespace) -> dict[str, Group]:
    """The groups and rows to draw. Raises ValueError for names that there are not."""
    groups = GROUPS[options.command]()
    if options.family != demo.UNET:
        scheduler = demo.FAMILIES[options.family].scheduler
        groups = {name: replace(group, scheduler=scheduler) for name, group in groups.items()}
    unknown = {*(options.groups or ())} - {*groups}
    unknown |= {*(options.rows or ())} - {name for group in groups.values() for name in group.rows}
    if unknown:
        raise ValueError(
            f"There is no {' and no '.join(sorted(unknown))}. The groups are {', '.join(groups)}."
        )
    changed = {name: getattr(options, name) for name in ("samples", "steps") if getattr(options, name)}
    return {
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


def main() -> None:
    """Draws the missing pictures, judges all of them, writes the tables."""
    parser = argument_parser()
    options = parser.parse_args()
    try:
        groups = chosen_groups(options)
    except ValueError as error:
        parser.error(str(error))
    if options.command == "seeds" and (missing := missing_files()):
        parser.error(
            f"{', '.join(map(str, missing))} not found: train them with the commands at the head of "
            "experiments/other_seeds.py."
        )
    with torch.inference_mode():
        drawings = Drawings(
            options.work.resolve(), getattr(torch, options.dtype), options.family, options.weights
        )
        judges = {seed: Judges(drawings, seed) for seed in {group.judges for group in groups.values()}}
        part, parts = map(int, options.part.split("/"))
        draw(judges, [*groups.values()], part, parts, options.minutes)
        if parts > 1:
            return
        complete = {name: as_far_as_drawn(judges[group.judges], group) for name, group in groups.items()}
        groups = {name: group for name, group in complete.items() if group.samples > 0}
        if not groups:
            raise SystemExit("No row without guidance has a batch yet: call it again.")
        lines = heading(options, drawings, tunes=all(group.seeds == TUNING for group in groups.values()))
        for name, group in groups.items():
            lines += table(judges[group.judges], group)
            judges[group.judges].write_sheets(f"{options.command}-{name}", group)
    suffix = "" if options.family == demo.UNET else f"_{options.family}"
    if options.weights != demo.WEIGHTS:
        suffix += f"_{options.weights.name}"
    out = options.out or ROOT / "docs" / "results" / f"{FILES[options.command]}{suffix}.md"
    out.write_text("\n".join(lines), encoding="utf-8")
    print(out.read_text(encoding="utf-8"))


def draw(
    judges: Mapping[int, Judges], groups: Sequence[Group], part: int, parts: int, minutes: float
) -> None:
    """Draws and judges what is missing, the first batch of every row, then the second, until time is up."""
    jobs = [
        (group, row, group.seeds[offset])
        for offset in range(0, max(group.samples for group in groups), BATCH)
        for group in groups
        if offset < group.samples
        for row in group.rows
    ]
    ends = time.monotonic() + 60 * minutes
    for group, row, first in tqdm(jobs[part::parts], desc="drawing", unit="batch"):
        if time.monotonic() > ends:
            return
        judges[group.judges].batch(group, row, first)


def as_far_as_drawn(judges: Judges, group: Group) -> Group:
    """The group with the rows that have begun, and with as many pictures as each of them has."""
    drawn = {name: judges.drawn(group, name) for name in group.rows}
    begun = {name: count for name, count in drawn.items() if count > 0}
    return replace(
        group,
        rows={name: row for name, row in group.rows.items() if name in begun},
        samples=min(begun.values()) if NONE in begun else 0,
    )


def heading(options: argparse.Namespace, drawings: Drawings, tunes: bool) -> list[str]:
    """Title, command and legend of the tables. tunes: whether they are of tuning seeds."""
    read = drawings.model_name, drawings.head_name
    files = (*read, "latent_head", "depth_prior", "depth_judge", "recogniser")
    family = [] if options.family == demo.UNET else ["--family", options.family]
    weights = [] if options.weights == demo.WEIGHTS else ["--weights", shlex.quote(str(options.weights))]
    trial = [*family, *weights] + [
        f"--{name} {getattr(options, name)}"
        for name in ("samples", "steps", "dtype")
        if getattr(options, name) not in (None, "bfloat16")
    ]
    for name in ("groups", "rows"):
        if getattr(options, name):
            trial += [f"--{name}", *(shlex.quote(value) for value in getattr(options, name))]
    return [
        f"# {TITLES[options.command]}",
        "",
        f"`{' '.join([COMMAND, options.command, *trial])}` on {get_torch_device()}; SHA-256 of "
        + ", ".join(f"{name} begins {drawings.checksums[name]}" for name in files)
        + ".",
        "",
        *(["**Tuning seeds:** this chooses a setting and reports none.", ""] if tunes else []),
        *LEGEND,
        "",
    ]
