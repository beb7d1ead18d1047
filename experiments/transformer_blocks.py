"""Which blocks of a transformer know depth, and should its features be normalised per token?

    python -m tools.run experiments.transformer_blocks      writes transformer_blocks.md

Depth heads read blocks of the demo transformer on renders that it was not trained on: each block alone and
sets of blocks, as the residual stream is and after per-token normalisation. What decides is trained from
several seeds. All heads see the same noisy scenes.

Features and figures are kept in the work folder, so a second call resumes an interrupted one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from comfy.model_management import get_torch_device
from tqdm import tqdm

from ..demo import model as demo
from ..depth_head.training import CHECKED_TIMES
from ..tools.setup_host import ROOT
from . import markdown
from .kept_files import checksum
from .transformer_heads import BATCH, DRAWS, LABELS, LEARNING_RATE, Head, Trial

SINGLE = tuple((f"b{i}",) for i in range(7))
FIRST_HALF = ("b1", "b2", "b3")
CENTRED = ("b2", "b3", "b4")
ALL = tuple(f"b{i}" for i in range(7))
SEEDS = {
    Head(CENTRED): 5,
    Head(FIRST_HALF): 5,
    Head(ALL): 3,
    **{Head((block,), token_norm): 5 for block in ("b3", "b4", "b5") for token_norm in (True, False)},
}
"""Heads that are trained from several seeds, and from how many. From one seed a single block can look best by
far: b5 did on earlier weights, b4 does on these."""

TABLE = ROOT / "docs" / "results" / "transformer_blocks.md"
COMMAND = "python -m tools.run experiments.transformer_blocks"


def main() -> None:
    """Trains and judges the heads that are missing, and writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--judged", type=int, default=128, help="scenes on which heads are judged")
    parser.add_argument("--work", type=Path, default=Path(".cache/transformer_blocks"))
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    trial = Trial.load(options)
    found = {head: trial.figures(head) for head in tqdm(heads(), desc="heads", unit="head")}
    options.out.write_text("\n".join(report(options, found)) + "\n", encoding="utf-8")
    print(options.out.read_text(encoding="utf-8"))


def heads() -> list[Head]:
    """All heads of the tables, each once."""
    one_seed = [
        *(Head(blocks) for blocks in (*SINGLE, FIRST_HALF, CENTRED, ALL)),
        *(Head(blocks, token_norm=False) for blocks in (*SINGLE, FIRST_HALF)),
    ]
    return list(dict.fromkeys([*one_seed, *(head for first in SEEDS for head in of_all_seeds(first))]))


def of_all_seeds(first: Head) -> list[Head]:
    """A head of SEEDS, and the same from the other seeds."""
    return [first._replace(seed=seed) for seed in range(SEEDS[first])]


def report(options: argparse.Namespace, found: Mapping[Head, Mapping[str, float]]) -> list[str]:
    """The lines of both tables."""
    times = [f"t = {time}" for time in CHECKED_TIMES]

    def by_time(head: Head) -> list[str]:
        return [f"{found[head][str(time)]:.3f}" for time in CHECKED_TIMES]

    one_seed = {}
    for blocks in (*SINGLE, FIRST_HALF, CENTRED, ALL):
        normalised, stream = Head(blocks), Head(blocks, token_norm=False)
        one_seed[", ".join(blocks)] = [
            " / ".join(pair)
            for pair in zip(
                by_time(stream) if stream in found else ["-"] * len(CHECKED_TIMES),
                by_time(normalised),
                strict=True,
            )
        ]
    by_seed = {}
    for first in SEEDS:
        name = ", ".join(first.blocks) + ("" if first.token_norm else ", residual stream")
        by_seed[name] = [
            f"{sum(found[head][str(time)] for head in of_all_seeds(first)) / SEEDS[first]:.3f} "
            f"({', '.join(f'{found[head][str(time)]:.3f}' for head in of_all_seeds(first))})"
            for time in CHECKED_TIMES
        ]
    settings = f" --steps {options.steps} --judged {options.judged}"
    return [
        "# Which blocks of the demo transformer know depth?",
        "",
        f"`{COMMAND}{settings}` on {get_torch_device()}; SHA-256 of transformer begins "
        f"{checksum(demo.WEIGHTS / demo.TRANSFORMER_FILE)}.",
        "",
        f"AbsRel on {options.judged} judged scenes, without alignment. t is 1000 sigma. Every head is a "
        f"pixel MLP, {options.steps} steps of {BATCH}, learning rate {LEARNING_RATE:g}, on {DRAWS} noisy "
        f"versions of {LABELS} labelled scenes. A tenth of the scenes only selects the best state.",
        "",
        "## Seed 0: residual stream / per-token normalisation",
        "",
        *markdown.table(times, one_seed),
        "",
        "## Mean (each seed), with per-token normalisation if not stated otherwise",
        "",
        *markdown.table(times, by_seed),
        "",
        "What follows for the defaults: [README.md](README.md#which-blocks-of-a-transformer-know-depth).",
    ]
