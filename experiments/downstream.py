"""Do images drawn with depth guidance teach a depth network more? The downstream test of the DAG paper.

    python -m tools.run experiments.downstream      writes downstream.md

The pictures of a row of `dag_experiment compare`, with the depth that the demo model's own head reads from
them, train a small network of the depth judge's form. It is judged by the exact depth of other renders. The
training seed gives the weights and the order of the pictures, which all rows share.

Missing pictures are drawn. They and the errors are kept in the work folder, so a second call resumes an
interrupted one.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from ..demo.depth_judge import SIZE, DepthJudge, judge
from ..demo.recogniser import shrink
from ..demo.scenes import FAR, NEAR
from ..tools.setup_host import ROOT
from . import markdown
from .dag_figures import abs_rel_after_alignment
from .dag_judges import Judges
from .dag_pictures import BATCH, Drawings
from .dag_rows import EQUAL_COST, NONE, Group, compared
from .kept_files import save
from .paired_bootstrap import LEVEL, bootstrap, cell, mean, resamples
from .seeds import REFERENCES, REPORTING

COMMAND = "python -m tools.run experiments.downstream"
TABLE = ROOT / "docs" / "results" / "downstream.md"
GROUPS = ("empty", "captions", "few-empty", "few")
ROWS = (NONE, EQUAL_COST, "DCG", "DPG", "DCG + DPG")
RENDERS, EXACT = "renders", "renders, exact depth"
TRAINING_SEEDS = range(3)
STEPS, PAIRS_OF_A_STEP, LEARNING_RATE = 200, 8, 2e-3
JUDGED = 200
"""Renders that a network is judged on."""


def main() -> None:
    """Draws what is missing, trains a network on each row from each seed, writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=100, help=f"pictures of a row, a multiple of {BATCH}")
    parser.add_argument("--work", type=Path, default=Path(".cache/depth_aware_guidance"))
    options = parser.parse_args()
    groups = {
        name: replace(group, samples=options.samples, rows={row: group.rows[row] for row in ROWS})
        for name, group in compared().items()
        if name in GROUPS
    }
    work = options.work.resolve()
    with torch.inference_mode():
        judges = Judges(Drawings(work, torch.bfloat16))
        held_out = pairs_of_renders(judges, REFERENCES[REPORTING], JUDGED, exact=True)
        lines = heading(judges, options.samples)
        for group in groups.values():
            errors = {}
            for name, pictures, depth in rows_of(judges, group):
                errors[name] = torch.stack(
                    [
                        kept_errors(work / "downstream", (pictures, depth), held_out, seed)
                        for seed in tqdm(TRAINING_SEEDS, desc=f"{group.title}: {name}", leave=False)
                    ]
                )
            lines += [f"## {group.title}, {group.steps} steps", "", *table(errors), ""]
    TABLE.write_text("\n".join(lines), encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))


def rows_of(judges: Judges, group: Group) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, pictures (N, 256, 256, 3) in uint8 and depth (N, 1, 32, 32) of each row, and of renders."""
    for name in group.rows:
        drawn = [judges.drawings.draw(group, name, first)["pictures"] for first in group.batches(BATCH)]
        yield name, torch.cat(drawn), judges.seen(group, name).head
    for name in (RENDERS, EXACT):
        yield name, *pairs_of_renders(judges, group.seeds, group.samples, exact=name == EXACT)


def pairs_of_renders(judges: Judges, seeds: range, count: int, exact: bool) -> tuple[Tensor, Tensor]:
    """Renders after the autoencoder, with their own depth or with that which the head reads."""
    pictures = judges.drawings.scene_tensor("pictures", seeds, count)
    return pictures, judges.truth(seeds, count) if exact else judges.renders(seeds, count).head


def kept_errors(
    folder: Path, pairs: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], seed: int
) -> Tensor:
    """AbsRel (JUDGED,) of a network that learns from pairs, trained once."""
    made_by = b"".join(part.contiguous().numpy().tobytes() for part in (*pairs, *held_out))
    settings = f"{STEPS} {PAIRS_OF_A_STEP} {LEARNING_RATE} {seed}".encode()
    path = folder / f"{hashlib.sha256(made_by + settings).hexdigest()[:12]}.safetensors"
    if not path.exists():
        pictures, depth = held_out
        save(
            path,
            errors=abs_rel_after_alignment(judge(trained(*pairs, seed), pictures).depth, depth, NEAR, FAR),
        )
    return load_file(path)["errors"]


@torch.inference_mode(False)
@torch.enable_grad()
def trained(pictures: Tensor, depth: Tensor, seed: int) -> DepthJudge:
    """A network that has learned the depth (N, 1, 32, 32) of pictures (N, H, W, 3), mirrored by chance."""
    shown = shrink(pictures.float() / 255, SIZE).clone()
    depth = depth.clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DepthJudge()
    seeded = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(len(shown), (PAIRS_OF_A_STEP,), generator=seeded)
        mirrored = torch.rand(PAIRS_OF_A_STEP, 1, 1, 1, generator=seeded) < 0.5
        seen, label = (torch.where(mirrored, maps[chosen].flip(-1), maps[chosen]) for maps in (shown, depth))
        loss = F.l1_loss(network(seen).depth, label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def table(errors: dict[str, Tensor]) -> list[str]:
    """The lines of a group's table; errors: row -> AbsRel (training seeds, JUDGED)."""
    drawn = resamples(JUDGED)
    figures = {name: bootstrap(mean, of_row.mean(0), drawn) for name, of_row in errors.items()}
    cells = {
        name: [
            cell(figures[name], None if name == NONE else figures[NONE]),
            ", ".join(f"{error:.3f}" for error in of_row.mean(1).tolist()),
        ]
        for name, of_row in errors.items()
    }
    return markdown.table(["AbsRel", "by training seed"], cells)


def heading(judges: Judges, samples: int) -> list[str]:
    """Title, command and legend."""
    checksums = judges.drawings.checksums
    files = ("unet", "depth_head", "depth_prior")
    return [
        "# Do images drawn with depth guidance teach a depth network more?",
        "",
        f"`{COMMAND} --samples {samples}`; SHA-256 of "
        + ", ".join(f"{name} begins {checksums[name]}" for name in files)
        + ".",
        "",
        f"A network learns depth from the {samples} pictures of a row, as the demo model's head reads it, in "
        f"{STEPS} steps of {PAIRS_OF_A_STEP} pictures. AbsRel on {JUDGED} renders of other scenes, after the "
        f"autoencoder, after scale and shift; the mean of {len(TRAINING_SEEDS)} trainings.",
        "",
        f"In brackets: the change from the row without guidance and its {LEVEL:.0%} interval, from a "
        "bootstrap over the renders; bold where it excludes 0. It does not include that trainings differ.",
        "",
        f"- {RENDERS}: the scenes that the captions describe, with the depth that the head reads. {EXACT}: "
        "with their own.",
        "",
    ]
