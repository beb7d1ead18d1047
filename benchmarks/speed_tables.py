"""The tables of speed.md: the ratios that have a goal, and all rows."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from .rows import PLAIN
from .step_costs import Steps

MIB = 2**20


class Goal(NamedTuple):
    """The goal for the time of one row divided by the time of another."""

    row: str
    other: str
    reach: float


GOALS = (
    Goal("sag", "host_sag", 1.0),
    Goal("sag", PLAIN, 1.5),
    Goal("sag_reused", PLAIN, 1.25),
    Goal("dag", PLAIN, 1.6),
    Goal("dag_all", PLAIN, 1.6),
    Goal("dag_latent", PLAIN, 1.1),
    Goal("recording", PLAIN, 1.05),
)
DAG_MEMORY, ATTENTION_MEMORY, IMPORT_SECONDS = 1.5, 0.1, 0.1


def ratios(steps: Steps, attention: Mapping[str, float], imported: float) -> Iterator[str]:
    """The ratios that have a goal."""
    yield from ("| what | measured | reach |", "|---|---|---|")
    titles = {name: row.title for name, row in steps.rows.items()}
    for row, other, reach in GOALS:
        if row in titles and other in titles:
            yield f"| time: {titles[row]} / {titles[other]} | {steps.time(row, other):.2f} | {reach:.2f} |"
    for row in ("dag", "dag_all"):
        if row in titles:
            ratio = steps.memory(row, PLAIN)
            yield f"| peak memory: {titles[row]} / {titles[PLAIN]} | {ratio:.2f} | {DAG_MEMORY:.2f} |"
    ratio = attention["sag"] / attention["host_sag"]
    yield (
        "| peak memory above a plain step, middle of SDXL at 2048 px: SAG / the host's own SAG "
        f"({attention['sag'] / MIB:.0f} / {attention['host_sag'] / MIB:.0f} MiB) "
        f"| {ratio:.3f} | {ATTENTION_MEMORY:.1f} |"
    )
    yield f"| seconds to import the pack, after the host | {imported:.2f} | {IMPORT_SECONDS:.1f} |"


def all_rows(steps: Steps, title: str) -> Iterator[str]:
    """All rows of the model with this title."""
    yield (
        f"Every row: {title}, one image. All rows share "
        f"{steps.weights / MIB:.0f} MiB of weights. MiB is what a step needs on top of them; memory / plain "
        "includes them."
    )
    yield from ("", "| name | row | time / plain | seconds | memory / plain | MiB |", "|---" * 6 + "|")
    for name, row in steps.rows.items():
        cost = steps.costs[name]
        yield (
            f"| `{name}` | {row.title} | {steps.time(name, PLAIN):.2f} | "
            f"{statistics.median(cost.seconds):.3g} | {steps.memory(name, PLAIN):.2f} | "
            f"{cost.peak / MIB:.0f} |"
        )
