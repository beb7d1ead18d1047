"""Does depth-aware guidance help (DAG, section 4)? And how strong should it be?

    python -m benchmarks.depth_aware_guidance sweep      writes depth_aware_guidance_sweep.md
    python -m benchmarks.depth_aware_guidance compare    writes depth_aware_guidance.md

Every row of a table draws the same seeds with the demo model, through the node. A depth network that was
trained on renders alone (demo/depth_judge.py) estimates the depth of the pictures; it never saw the UNet.
What the figures are without a model's faults is told by renders after the autoencoder, and what they are
where geometry is broken by the same renders, bent.

Pictures are kept in the work folder and measured from there, so a call goes on where another one ended. Two
processes share the work if one is called with --backwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .depth_figures import (
    Change,
    abs_rel_after_alignment,
    change_of_distance,
    change_of_mean,
    depth_features,
    distance_after_alignment,
    planarity,
)
from .guided_pictures import BATCH, BENT, NONE, Bench, Group, Row, Seen
from .pack import import_pack

COMMAND = "python -m benchmarks.depth_aware_guidance"
TABLES = {
    "sweep": Path(__file__).with_name("depth_aware_guidance_sweep.md"),
    "compare": Path(__file__).with_suffix(".md"),
}
RESAMPLES = 100


def only(loss: str, scale: float = 1.0) -> dict[str, float]:
    """Strengths with one loss alone."""
    scales = dict.fromkeys(("consistency_scale", "prior_scale", "target_scale"), 0.0)
    return scales | {f"{loss}_scale": scale}


def both(consistency: float = 1.0, prior: float = 1.0) -> dict[str, float]:
    """Strengths of DCG and DPG."""
    return {"consistency_scale": consistency, "prior_scale": prior, "target_scale": 0.0}


def compared() -> dict[str, Group]:
    """The groups of `compare`: the node's own defaults."""
    losses = ("consistency_scale", "prior_scale", "target_scale")
    names = {"DCG": losses[:1], "DPG": losses[1:2], "DCG + DPG": losses[:2], "target": losses[2:]}
    robust = {NONE: Row(None)} | {
        name: Row({loss: 0.0 for loss in losses if loss not in acting}) for name, acting in names.items()
    }
    return {
        "empty": Group("Robust mode, empty prompt, CFG 1", robust, 500, steps=12),
        "captions": Group(
            "Robust mode, captions, CFG 3", robust, 60, cfg=3.0, captions=True, steps=12, side=4
        ),
    }


# The sweep is around these, whatever became of the defaults since.
SWEPT_STEP = 0.15
SWEPT = {
    "mode": "robust",
    "start_percent": 0.0,
    "end_percent": 0.8,
    "self_start_percent": 0.0,
    "every_n_steps": 1,
}
LATENT_CELLS, PRIOR_CELLS = 32 * 32, 32 * 32
LOW_TAU = (0.02, 0.1)


def swept() -> dict[str, Group]:
    """The groups of `sweep`: one factor at a time."""

    def robust(settings: dict[str, Any], **constants: Any) -> Row:
        constants = {"PRIOR_LEVELS": (0.1, 0.7)} | constants
        return Row(SWEPT | settings, constants, SWEPT_STEP)

    def paper(consistency: float, prior: float) -> Row:
        constants = {"PRIOR_LEVELS": (0.1, 0.7), "PAPER_WEIGHT": 40.0}
        return Row(SWEPT | {"mode": "paper"} | both(consistency, prior), constants)

    strengths = {
        f"{name}, step {scale * SWEPT_STEP:g}": robust(only(loss, scale))
        for name, loss in (("DCG", "consistency"), ("DPG", "prior"), ("target", "target"))
        for scale in (0.5, 1.0, 2.0, 4.0)
    }
    ranges = {
        f"DCG + DPG, step 0.15, {start:g} to {end:g}": robust(
            both() | {"start_percent": start, "end_percent": end}
        )
        for start, end in ((0.0, 0.8), (0.2, 0.8), (0.0, 0.6), (0.0, 1.0))
    }
    levels = {
        f"DPG, step 0.15, tau {low:g} to {high:g}": robust(only("prior"), PRIOR_LEVELS=(low, high))
        for low, high in (LOW_TAU, (0.05, 0.3), (0.4, 0.9))
    }
    late = {
        f"{name}, step {scale * SWEPT_STEP:g}, tau 0.02 to 0.1, 0.4 to 1": robust(
            scales | {"self_start_percent": 0.4, "end_percent": 1.0}, PRIOR_LEVELS=LOW_TAU
        )
        for name, scale, scales in (
            ("DCG", 1.0, only("consistency")),
            ("DPG", 1.0, only("prior")),
            ("DCG + DPG", 1.0, both()),
            ("DCG + DPG", 2.0, both(2.0, 2.0)),
        )
    }
    weights = {f"DCG + DPG, w = {40 * scale:g}, means": paper(scale, scale) for scale in (1.0, 4.0, 16.0)}
    weights["DCG + DPG, w = 40, sums"] = paper(LATENT_CELLS, PRIOR_CELLS)
    return {
        "robust": Group(
            "Robust mode", {NONE: Row(None)} | strengths | ranges | levels | late, 60, steps=12, side=4
        ),
        "paper": Group(
            "Paper mode",
            {NONE: Row(None)} | weights,
            40,
            sampler="ddpm",
            scheduler="normal",
            side=4,
        ),
    }


GROUPS = {"sweep": swept, "compare": compared}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=GROUPS)
    parser.add_argument("--groups", nargs="+", help="tables to draw, else all")
    parser.add_argument("--rows", nargs="+", help="rows to draw, else all; those without guidance always are")
    parser.add_argument("--samples", type=int, help="pictures a row, else as many as the table is made for")
    parser.add_argument("--steps", type=int, help="sampling steps, else those that the table is made for")
    parser.add_argument(
        "--backwards", action="store_true", help="begin at the end, and write no table: for a second process"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path(".cache/depth_aware_guidance"))
    parser.add_argument("--out", type=Path, help="file for the tables")
    options = parser.parse_args()
    groups = GROUPS[options.command]()
    unknown = {*(options.groups or ())} - {*groups}
    unknown |= {*(options.rows or ())} - {name for group in groups.values() for name in group.rows}
    if unknown:
        parser.error(f"There is no {' and no '.join(sorted(unknown))}. Groups: {', '.join(groups)}.")
    changed = {name: getattr(options, name) for name in ("samples", "steps") if getattr(options, name)}
    groups = {name: replace(group, **changed) for name, group in groups.items()}
    work = options.work.resolve()
    import_pack(options.device)
    with torch.inference_mode():
        bench = Bench(work)
        jobs = [
            (group, row, first)
            for name, group in groups.items()
            if name in (options.groups or groups)
            for row in group.rows
            if row == NONE or row in (options.rows or group.rows)
            for first in range(0, group.samples, BATCH)
        ]
        for job in tqdm(jobs[::-1] if options.backwards else jobs, desc="drawing", unit="batch"):
            bench.draw(*job)
        if options.backwards:
            return
        lines = heading(options, bench, max(group.samples for group in groups.values()))
        for name, group in groups.items():
            lines += table(bench, group)
            bench.write_sheets(f"{options.command}-{name}", group)
    out = options.out or TABLES[options.command]
    out.write_text("\n".join(lines))
    print(out.read_text())


Cell = Change | float | str


def table(bench: Bench, group: Group) -> list[str]:
    """A group's table, of the rows that are complete."""
    from inner_guidance.demo.measures import frechet_distance
    from inner_guidance.demo.world import FAR, NEAR

    count = group.samples
    found = {name: bench.seen(group, name) for name in group.rows}
    rows = {name: known for name, known in found.items() if known is not None}
    if NONE not in rows:
        return []
    reference, truth, shown = bench.reference(count), bench.truth(count), bench.shown(count)
    baseline = rows[NONE][0]

    def figures(seen: Seen) -> dict[str, Cell]:
        def frechet(of: Callable[[Seen], Tensor]) -> Change:
            return change_of_distance(of(seen), of(baseline), of(reference), frechet_distance, RESAMPLES)

        def mean(of: Callable[[Seen], Tensor]) -> Change:
            return change_of_mean(of(seen), of(baseline))

        cells: dict[str, Cell] = {
            "dFID": frechet(lambda s: depth_features(s.depth, group.side)),
            "image Frechet": frechet(lambda s: s.features),
            "head and judge differ": mean(lambda s: distance_after_alignment(s.head, s.depth)),
            "off the planes": mean(lambda s: planarity(s.depth, s.surfaces)),
            "off the target": mean(lambda s: distance_after_alignment(s.depth, truth)),
            "head off the target": mean(lambda s: distance_after_alignment(s.head, truth)),
            "AbsRel to the target": mean(lambda s: abs_rel_after_alignment(s.depth, truth, NEAR, FAR)),
            "branches differ": mean(lambda s: s.consistency),
            "prior's loss": mean(lambda s: s.prior),
        }
        if group.captions:
            cells["main object"] = mean(lambda s: fidelity(s.objects, *shown)[0])
            cells["objects found"] = mean(lambda s: fidelity(s.objects, *shown)[1])
        return cells

    lines = [
        f"## {group.title}",
        "",
        f"{count} pictures a row, {group.steps} steps of {group.sampler}, {group.scheduler}, CFG "
        f"{group.cfg:g}; dFID of {group.side} x {group.side} cells.",
        "",
    ]
    all_rows = {
        name: figures(seen) | {"depth moved": moved(seen, baseline), "s/image": seconds}
        for name, (seen, seconds) in rows.items()
    } | {name: figures(seen) for name, seen in bench.renders(count).items()}
    columns = list(all_rows[NONE])
    lines += [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, cells in all_rows.items():
        plain = name == NONE or name not in group.rows
        lines.append(f"| {name} | {' | '.join(text(cells.get(column, ''), plain) for column in columns)} |")
    missing = [name for name in group.rows if name not in rows]
    if missing:
        lines += ["", f"Not drawn: {'; '.join(missing)}."]
    return [*lines, ""]


def moved(seen: Seen, baseline: Seen) -> float:
    """Mean absolute difference of the judge's depth from the baseline's at the same seeds."""
    return (seen.depth - baseline.depth).abs().mean().item()


def fidelity(objects: Tensor, present: Tensor, main: Tensor) -> tuple[Tensor, Tensor]:
    """Of each picture (N,): whether the main object is recognised, and the share of the objects that are.

    objects (N, kinds): probabilities; present (N, kinds): 1 for what should be there; main (N,): its kind.
    """
    found = (objects > 0.5).float()
    return found[torch.arange(len(main)), main], (found * present).sum(1) / present.sum(1)


def text(cell: Cell, plain: bool) -> str:
    """A cell; plain: without the change from the baseline."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, float):
        return f"{cell:.3f}"
    digits = 4 if abs(cell.value) < 10 else 2
    value = f"{cell.value:.{digits}f}"
    return value if plain else f"{value} ({cell.change:+.{digits}f} ± {cell.deviation:.{digits}f})"


def heading(options: argparse.Namespace, bench: Bench, scenes: int) -> list[str]:
    """What the tables say, and from what they are. scenes: on how many the judge is judged."""
    judged = bench.judge_accuracy(scenes)
    files = ("unet", "depth_head", "depth_prior", "depth_judge")
    title = "Strength of depth-aware guidance" if options.command == "sweep" else "Does depth guidance help?"
    trial = [f"--{name} {getattr(options, name)}" for name in ("samples", "steps") if getattr(options, name)]
    return [
        f"# {title}",
        "",
        f"`{' '.join([COMMAND, options.command, *trial])}` on {options.device}; SHA-256 of "
        + ", ".join(f"{name} begins {bench.checksums[name]}" for name in files)
        + ".",
        "",
        "In brackets: change from the row without guidance at the same seeds, ± its standard deviation "
        f"(Frechet distances: {RESAMPLES} resamplings of pictures and reference; others: over the pictures).",
        "",
        "- dFID: Frechet distance of the judge's depth maps from those of renders of as many other scenes, "
        "after the autoencoder. Image Frechet: the same of the recogniser's features.",
        "- head and judge differ: mean difference of the depth that the UNet's head reads from the finished "
        "picture (t = 100) and the judge's, after scale and shift. Relative inverse depth, 0 to 1.",
        "- off the planes: RMS distance of the judge's depth from a plane through each of floor and walls.",
        "- off the target, AbsRel to the target: the judge's depth against the scene whose depth is the "
        "target, after scale and shift; head off the target: the same of the head's.",
        "- branches differ: mean |d_S - d_W|, what DCG lowers; prior's loss: what DPG lowers. Both of the "
        "finished picture.",
        "- depth moved: mean difference of the judge's depth from that without guidance. s/image: sampling "
        f"in batches of {BATCH}, median of the batches.",
        f"- renders: of the scenes themselves, after the autoencoder. bent: by {BENT:.0%} of their "
        "side, which shows how the figures take broken geometry.",
        "",
        f"The judge itself, on {scenes} renders that it never saw: "
        + "; ".join(f"{name}: {metrics}" for name, metrics in judged.items())
        + ".",
        "",
    ]


if __name__ == "__main__":
    main()
