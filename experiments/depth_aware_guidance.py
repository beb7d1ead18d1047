"""Does depth-aware guidance help (DAG, section 4)? And how strong should it be?

    python -m tools.run experiments.depth_aware_guidance sweep      writes depth_aware_guidance_sweep.md
    python -m tools.run experiments.depth_aware_guidance compare    writes depth_aware_guidance.md

Every row of a table draws the same seeds with the demo model, through the node. A depth network that was
trained on renders alone (demo/depth_judge.py) estimates the depth of the pictures; it never saw the UNet.
What the figures are without a model's faults is told by renders after the autoencoder, and what they are
where geometry is broken by the same renders, bent.

Pictures are kept in the work folder and measured from there, so a call goes on where another one ended. Two
processes share the work if one is called with --backwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..tools.setup_host import ROOT
from .guidance_tables import LEGEND, table
from .guided_pictures import BATCH, NONE, Drawings, Group, Row, aligned_consistency_loss, literal_prior_loss
from .picture_judges import Judges

COMMAND = "python -m tools.run experiments.depth_aware_guidance"
TABLES = {
    "sweep": ROOT / "docs" / "results" / "depth_aware_guidance_sweep.md",
    "compare": ROOT / "docs" / "results" / "depth_aware_guidance.md",
}


def only(loss: str, scale: float = 1.0) -> dict[str, float]:
    """Strengths with one loss alone."""
    scales = dict.fromkeys(("consistency_scale", "prior_scale", "target_scale"), 0.0)
    return scales | {f"{loss}_scale": scale}


def both(consistency: float = 1.0, prior: float = 1.0) -> dict[str, float]:
    """Strengths of DCG and DPG."""
    return {"consistency_scale": consistency, "prior_scale": prior, "target_scale": 0.0}


def compared() -> dict[str, Group]:
    """The groups of `compare`: the node's own defaults, and others of what they show to matter."""
    losses = ("consistency_scale", "prior_scale", "target_scale")
    names = {"DCG": losses[:1], "DPG": losses[1:2], "DCG + DPG": losses[:2], "target": losses[2:]}
    defaults = {NONE: Row(None)} | {
        name: Row({loss: 0.0 for loss in losses if loss not in acting}) for name, acting in names.items()
    }
    others = {
        "DPG, twice as strong": Row(only("prior")),
        "DPG, tau 0.1 to 0.5": Row(only("prior", 0.5), {"PRIOR_LEVELS": (0.1, 0.5)}),
        "DCG of aligned maps": Row(
            only("consistency", 0.5), losses={"consistency_loss": aligned_consistency_loss}
        ),
        "target, half as strong": Row(only("target", 0.5)),
        "target, twice as strong": Row(only("target", 2.0)),
        "target, to the last step": Row(only("target") | {"target_end_percent": 1.0}),
    }
    of_target = {NONE: defaults[NONE], "target": defaults["target"]} | {
        "target, a third as strong": Row(only("target", 1 / 3)),
        "target, 1.5 times as strong": Row(only("target", 1.5)),
        "target, from 20 %": Row(only("target") | {"start_percent": 0.2}),
        "target, from 30 %": Row(only("target") | {"start_percent": 0.3}),
        "target, to 40 %": Row(only("target") | {"target_end_percent": 0.4}),
    }
    captions = Group("Robust mode, captions, CFG 3", defaults, 500, cfg=3.0, captions=True, steps=12)
    return {
        "empty": Group("Robust mode, empty prompt, CFG 1", defaults | others, 500, steps=12),
        "captions": captions,
        "target": replace(
            captions, title="A target with captions, by strength and window", rows=of_target, samples=200
        ),
    }


# The sweep is around these, which it found.
SWEPT_STEP = 0.3
LITERAL = {"denoised_prior_loss": literal_prior_loss}
SWEPT = {
    "mode": "robust",
    "start_percent": 0.0,
    "end_percent": 1.0,
    "self_start_percent": 0.6,
    "target_end_percent": 0.6,
    "every_n_steps": 1,
}
SWEPT_CONSTANTS = {
    "PRIOR_LEVELS": (0.01, 0.05),
    "PRIOR_NOISES": 4,
    "TARGET_WEIGHT": 3.0,
    "PAPER_WEIGHT": 40.0,
}
LATENT_CELLS, PRIOR_CELLS = 32 * 32, 32 * 32


def swept() -> dict[str, Group]:
    """The groups of `sweep`: one factor at a time."""

    def robust(
        settings: dict[str, Any], losses: Mapping[str, Callable[..., Tensor]] | None = None, **constants: Any
    ) -> Row:
        return Row(SWEPT | settings, SWEPT_CONSTANTS | constants, SWEPT_STEP, losses=losses or {})

    def paper(consistency: float, prior: float) -> Row:
        return Row(SWEPT | {"mode": "paper"} | both(consistency, prior), SWEPT_CONSTANTS)

    rows = {
        f"{name}, {scale:g}": robust(only(loss, scale))
        for name, loss, scales in (
            ("DCG", "consistency", (0.25, 0.5, 1.0, 2.0)),
            ("DPG", "prior", (0.5, 1.0, 2.0, 4.0)),
            ("target", "target", (0.25, 0.5, 1.0, 1.5, 2.0)),
        )
        for scale in scales
    }
    rows |= {
        f"DCG 0.5 + DPG 1, from {start:g}": robust(both(0.5, 1.0) | {"self_start_percent": start})
        for start in (0.0, 0.2, 0.4, 0.6, 0.8)
    }
    rows |= {
        f"target, to {end:g}": robust(only("target") | {"target_end_percent": end}) for end in (0.4, 0.8, 1.0)
    }
    rows |= {
        f"DPG, tau {low:g} to {high:g}": robust(only("prior"), PRIOR_LEVELS=(low, high))
        for low, high in ((0.02, 0.1), (0.1, 0.5), (0.02, 0.98))
    }
    rows |= {f"DPG, noises: {n}": robust(only("prior"), PRIOR_NOISES=n) for n in (1, 16)}
    early = only("prior") | {"self_start_percent": 0.0}
    rows |= {
        "DPG, from 0": robust(early),
        "DPG by L_dp": robust(only("prior"), LITERAL),
        "DPG by L_dp, from 0": robust(early, LITERAL),
    }
    weights = {f"DCG + DPG, w = {40 * scale:g}, means": paper(scale, scale) for scale in (1.0, 4.0, 16.0)}
    weights["DCG + DPG, w = 40, sums"] = paper(LATENT_CELLS, PRIOR_CELLS)
    return {
        "robust": Group("Robust mode", {NONE: Row(None)} | rows, 60, steps=12, side=4),
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
    with torch.inference_mode():
        drawings = Drawings(work)
        jobs = [
            (group, row, first)
            for name, group in groups.items()
            if name in (options.groups or groups)
            for row in group.rows
            if row == NONE or row in (options.rows or group.rows)
            for first in range(0, group.samples, BATCH)
        ]
        for job in tqdm(jobs[::-1] if options.backwards else jobs, desc="drawing", unit="batch"):
            drawings.draw(*job)
        if options.backwards:
            return
        judges = Judges(drawings)
        lines = heading(options, judges, max(group.samples for group in groups.values()))
        for name, group in groups.items():
            lines += table(judges, group, drawings.seconds(group) if options.command == "compare" else {})
            judges.write_sheets(f"{options.command}-{name}", group)
    out = options.out or TABLES[options.command]
    out.write_text("\n".join(lines))
    print(out.read_text())


def heading(options: argparse.Namespace, judges: Judges, scenes: int) -> list[str]:
    """What the tables say, and from what they are. scenes: on how many the judge is judged."""
    from comfy.model_management import get_torch_device

    judged = judges.judge_accuracy(scenes)
    files = ("unet", "depth_head", "depth_prior", "depth_judge")
    title = "Strength of depth-aware guidance" if options.command == "sweep" else "Does depth guidance help?"
    trial = [f"--{name} {getattr(options, name)}" for name in ("samples", "steps") if getattr(options, name)]
    return [
        f"# {title}",
        "",
        f"`{' '.join([COMMAND, options.command, *trial])}` on {get_torch_device()}; SHA-256 of "
        + ", ".join(f"{name} begins {judges.drawings.checksums[name]}" for name in files)
        + ".",
        "",
        *LEGEND,
        "",
        f"The judge itself, on {scenes} renders that it never saw: "
        + "; ".join(f"{name}: {metrics}" for name, metrics in judged.items())
        + ".",
        "",
    ]
