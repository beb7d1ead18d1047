"""Does Self-Attention Guidance help (arXiv:2210.00939), where, and how strong should it be?

    python -m tools.run experiments.sag_experiment sweep      writes self_attention_guidance_sweep.md
    python -m tools.run experiments.sag_experiment compare    writes self_attention_guidance.md
    python -m tools.run experiments.sag_experiment judges     writes self_attention_guidance_judges.md
    python -m tools.run experiments.sag_experiment classifiers     writes classifier_heads_of_other_seeds.md

`sweep` draws tuning seeds, the others reporting seeds (docs/results/protocol.md). `judges` and `classifiers`
need networks that differ from the demo model's in the seed of their training: run `demo.train recogniser`,
`demo.train depth_judge` and, for `classifiers`, `demo.train_classifier` with `--seed 1 --out
.cache/other_seeds/1`, and the same with 2.

The demo model draws, with the nodes as they are. What the judges see is kept in the work folder, so a second
call resumes an interrupted one. All rows of a table grow together: --tables-only writes tables of what every
row has so far. Two processes share the work with --part 0/2 and --part 1/2, which write no table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from ..demo import model as demo
from ..tools.setup_host import ROOT
from .sag_drawing import BATCH, SAMPLER, SagDrawing, batches, class_of, shown
from .sag_rows import NONE, STEPS, Group, Seen, of_other_classifiers, of_other_judges, reported, swept
from .sag_table import LEGEND, tables
from .seeds import REFERENCES

COMMAND = "python -m tools.run experiments.sag_experiment"
GROUPS = {
    "sweep": swept,
    "compare": reported,
    "judges": of_other_judges,
    "classifiers": of_other_classifiers,
}
TITLES = {
    "sweep": "Self-Attention Guidance, one setting at a time",
    "compare": "Does Self-Attention Guidance help?",
    "judges": "Do judges of other training seeds see that Self-Attention Guidance helps?",
    "classifiers": "Do classifier heads of other training seeds guide as well?",
}
FILES = {
    "sweep": "self_attention_guidance_sweep",
    "compare": "self_attention_guidance",
    "judges": "self_attention_guidance_judges",
    "classifiers": "classifier_heads_of_other_seeds",
}
REFERENCE_RENDERS = 1000


def main() -> None:
    """Draws the missing pictures and writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=GROUPS)
    parser.add_argument("--family", choices=demo.FAMILIES, default=demo.UNET)
    parser.add_argument("--groups", nargs="+", help="tables to draw; all by default")
    parser.add_argument("--rows", nargs="+", help="rows to draw in addition to that without guidance")
    parser.add_argument("--pictures", type=int, help="pictures in each row, instead of the table's own")
    parser.add_argument("--reference", type=int, default=REFERENCE_RENDERS, help="renders to compare with")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="precision of the model"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="draw no longer than this")
    parser.add_argument("--part", default="", help="such as 0/2: draw every second batch, write no table")
    parser.add_argument("--tables-only", action="store_true", help="draw nothing")
    parser.add_argument("--work", type=Path, default=Path(".cache/self_attention_guidance"))
    parser.add_argument("--out", type=Path, help="file for the tables, instead of the one in docs/results/")
    options = parser.parse_args()
    groups = GROUPS[options.command](options.family != demo.UNET)
    if not groups:
        parser.error(f"There is no table {options.command} of the {options.family}.")
    unknown = {*(options.groups or ())} - {*groups}
    if unknown:
        parser.error(f"There is no {' and no '.join(sorted(unknown))}. The groups are {', '.join(groups)}.")
    groups = {
        name: replace(group, pictures=options.pictures or group.pictures)
        for name, group in groups.items()
        if name in (options.groups or groups)
    }
    if options.rows:
        keep = {NONE, *options.rows}
        keep |= {g.rows[row].as_strong_as for g in groups.values() for row in options.rows if row in g.rows}
        groups = {
            name: replace(group, rows={row: of_row for row, of_row in group.rows.items() if row in keep})
            for name, group in groups.items()
        }
    with torch.inference_mode():
        drawing = SagDrawing(options.work.resolve(), options.family, getattr(torch, options.dtype))
        if not options.tables_only:
            draw(drawing, groups, options)
        if options.part:
            return
        lines = heading(options, drawing)
        for group in groups.values():
            lines += section(drawing, group, options.reference)
    suffix = "" if options.family == demo.UNET else f"_{options.family}"
    out = options.out or ROOT / "docs" / "results" / f"{FILES[options.command]}{suffix}.md"
    out.write_text("\n".join(lines), encoding="utf-8")
    print(out.read_text(encoding="utf-8"))


def draw(drawing: SagDrawing, groups: dict[str, Group], options: argparse.Namespace) -> None:
    """Draws what is missing: renders, then the first batch of every row, and so on."""
    part, _, parts = options.part.partition("/")
    longest = max(group.pictures for group in groups.values())
    rendered: list[Callable[[], Seen]] = [
        partial(drawing.rendered, group, first)
        for group in {group.judges: group for group in groups.values()}.values()
        for first in [*batches(REFERENCES[group.seeds], options.reference), *batches(group.seeds, longest)]
    ]
    rows = [(group, name) for group in groups.values() for name in group.rows]
    drawn = [
        partial(drawing.batch, group, name, group.seeds.start + offset)
        for offset in range(0, longest, BATCH)
        for number, (group, name) in enumerate(rows)
        # Each part has all rows in turn, because they differ in cost.
        if offset < group.pictures and (number + offset // BATCH) % int(parts or 1) == int(part or 0)
    ]
    ends = time.monotonic() + 60 * options.minutes
    jobs = rendered[int(part or 0) :: int(parts or 1)] + drawn
    for job in tqdm(jobs, desc="drawing", unit="batch"):
        if time.monotonic() > ends:
            return
        job()


def section(drawing: SagDrawing, group: Group, reference: int) -> list[str]:
    """The tables of a group, of the pictures that all its rows have; rows without any are left out."""
    begun = [name for name in group.rows if drawing.path(group, name, group.seeds.start).exists()]
    count = 0
    for first in batches(group.seeds, group.pictures):
        if not all(drawing.path(group, name, first).exists() for name in begun):
            break
        count += BATCH
    count = min(count, group.pictures)
    if NONE not in begun or count == 0:
        return []
    rows = {name: drawing.row(group, name, count) for name in begun}
    others = REFERENCES[group.seeds]
    lines = tables(
        rows,
        drawing.renders(group, group.seeds, count),
        drawing.renders(group, others, reference),
        shown(group.seeds[:count]) if group.captions else None,
        torch.tensor([class_of(seed) for seed in group.seeds[:count]]) if group.classes else None,
    )
    return [f"## {group.title}", "", f"{count} pictures a row, {reference} renders.", "", *lines]


def heading(options: argparse.Namespace, drawing: SagDrawing) -> list[str]:
    """Title, command and legend."""
    chosen = [] if options.family == demo.UNET else ["--family", options.family]
    chosen += ["--groups", *options.groups] if options.groups else []
    return [
        f"# {TITLES[options.command]}",
        "",
        f"    {' '.join([COMMAND, options.command, *chosen])}",
        "",
        f"The demo {options.family}, {STEPS} steps of {SAMPLER}, {drawing.scheduler}, in {options.dtype}. "
        f"The SHA-256 of its weights begins {drawing.drawn_by[0]}.",
        "",
        *LEGEND,
        "",
    ]
