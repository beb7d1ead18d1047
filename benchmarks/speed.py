"""What guidance costs: time and memory of a sampling step, beside a step without it, in one run.

    python -m tools.run benchmarks.speed [--rows NAME ...] [--repeats N]      writes speed.md

On Stable Diffusion 1.5 at 512 px, and on what the middle of SDXL computes at 2048 px, with random weights. A
step is one evaluation that the sampler asks for, with a positive and a negative prompt. The rows take turns:
a ratio is the median of those of measurements that follow on one another.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tqdm import tqdm

from ..tools.setup_host import ROOT

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

TABLE = Path(__file__).with_suffix(".md")
COMMAND = "python -m tools.run benchmarks.speed"
PLAIN = "plain"
EVERY = 2
IMPORTS = 5
MIB = 2**20

SAG: dict[str, Any] = {
    "scale": 0.75,
    "blur_sigma": 1.0,
    "threshold": 1.0,
    "blocks": "m0",
    "branch": "auto",
    "space": "eps",
    "start_percent": 0.0,
    "end_percent": 1.0,
    "every_n_steps": 1,
}
DAG: dict[str, Any] = {
    "consistency_scale": 1.0,
    "prior_scale": 0.0,
    "target_scale": 0.0,
    "mode": "robust",
    "start_percent": 0.0,
    "end_percent": 1.0,
    "self_start_percent": 0.0,
    "target_end_percent": 1.0,
    "every_n_steps": 1,
}
RECORDING: dict[str, Any] = {"start_percent": 0.0, "end_percent": 1.0, "max_steps": 20, "preview": False}


class Row(NamedTuple):
    """What is measured: the mean of so many steps of the model with a node behind it."""

    title: str
    model: ModelPatcher
    steps: int = 1


class Goal(NamedTuple):
    """The time of a row beside another's, and what is to be reached."""

    row: str
    beside: str
    reach: float


GOALS = (
    Goal("sag", "host_sag", 1.0),
    Goal("sag", PLAIN, 1.5),
    Goal("sag_reused", PLAIN, 1.25),
    Goal("dag", PLAIN, 1.6),
    Goal("dag_all", PLAIN, 1.6),
    Goal("recording", PLAIN, 1.05),
)
DAG_MEMORY, ATTENTION_MEMORY, IMPORT_SECONDS = 1.5, 0.1, 0.1


@dataclass
class Cost:
    """peak: bytes that a step needs at most beside the weights; seconds: of a step, in each repeat."""

    peak: float
    seconds: list[float] = field(default_factory=list)


class Steps:
    """The costs of rows by name, of a model whose weights take so many bytes."""

    def __init__(self, rows: Mapping[str, Row], weights: float, repeats: int) -> None:
        from .evaluations import evaluations, peak_bytes, seconds

        self.rows, self.weights = rows, weights
        with tqdm(total=len(rows) * (repeats + 1), desc="steps of", unit="row") as bar:

            def measured(row: Row, measure: Callable) -> list[float]:
                bar.set_postfix_str(row.title)
                took = evaluations(row.model, row.steps, measure)
                bar.update()
                return took

            # This also warms everything up.
            self.costs = {name: Cost(max(measured(row, peak_bytes))) for name, row in rows.items()}
            for _ in range(repeats):
                for name, row in rows.items():
                    self.costs[name].seconds.append(statistics.mean(measured(row, seconds)))

    def time(self, name: str, beside: str) -> float:
        """How many times as long a step takes."""
        pairs = zip(self.costs[name].seconds, self.costs[beside].seconds, strict=True)
        return statistics.median(a / b for a, b in pairs)

    def memory(self, name: str, beside: str) -> float:
        """How many times as much memory a step needs at most, with the weights."""
        return (self.weights + self.costs[name].peak) / (self.weights + self.costs[beside].peak)


def main() -> None:
    """Measures and writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", help="only these rows, of the last table, and the plain step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    started = time.monotonic()
    imported = import_seconds()
    with torch.inference_mode():
        attention = attention_memory()
        steps = measured_steps(options.rows, options.repeats)
    minutes = (time.monotonic() - started) / 60
    lines = [
        "# What guidance costs",
        "",
        f"`{COMMAND} --repeats {options.repeats}`: {minutes:.0f} minutes on "
        f"{machine()}, PyTorch {torch.__version__}.",
        "",
        *ratios(steps, attention, imported),
        "",
        *all_rows(steps),
    ]
    options.out.write_text("\n".join(lines) + "\n")
    print(options.out.read_text())


def measured_steps(names: Iterable[str] | None, repeats: int) -> Steps:
    """The costs on Stable Diffusion 1.5 at 512 px."""
    from .real_sizes import sd15

    model = sd15()
    rows = sd15_rows(model)
    if names is not None:
        rows = {name: row for name, row in rows.items() if name in {PLAIN, *names}}
    return Steps(rows, model.model_size(), repeats)


def sd15_rows(model: ModelPatcher) -> dict[str, Row]:
    """Everything that is measured, by name."""
    from inner_guidance.nodes.depth_aware_guidance import InnerDepthAwareGuidance
    from inner_guidance.nodes.record import InnerRecordAttention, InnerRecordFeatures

    from .naive_depth_guidance import naively_guided
    from .real_sizes import depth_head, depth_prior, target_depth

    head = depth_head(model)
    losses: dict[str, Any] = {
        "prior_scale": 1.0,
        "target_scale": 1.0,
        "depth_prior": depth_prior(),
        "target_depth": target_depth(),
    }

    def dag(of: ModelPatcher = model, **settings: Any) -> ModelPatcher:
        return InnerDepthAwareGuidance.execute(of, head, **DAG | settings).result[0]

    network = head.head.network
    recorded = InnerRecordAttention.execute(model, "m0", **RECORDING, prompt=False).result[0]
    features = InnerRecordFeatures.execute(model, "m0", branch="positive", **RECORDING).result[0]
    return {
        PLAIN: Row("plain CFG step", model),
        "recording": Row("recording attention", recorded),
        "features": Row("recording features", features),
        "sag": Row("SAG", sag(model)),
        "sag_reused": Row(f"SAG, every_n_steps {EVERY}", sag(model, every_n_steps=EVERY), EVERY),
        "host_sag": Row("the host's own SAG", host_sag(model)),
        "dag": Row("DAG, consistency", dag()),
        "dag_all": Row("DAG, consistency, prior and target", dag(**losses)),
        "dag_reused": Row(f"DAG, every_n_steps {EVERY}", dag(every_n_steps=EVERY), EVERY),
        "dag_checkpointing": Row("DAG, checkpointing", dag(checkpointing=True)),
        "nag": Row("the host's NAG", nag(model)),
        "dag_nag": Row("DAG beside NAG: both prompts in the gradient", dag(nag(model))),
        "naive_dag": Row("naive DAG", naively_guided(model, network)),
        "both": Row("DAG and SAG", dag(sag(model))),
    }


def sag(model: ModelPatcher, **settings: Any) -> ModelPatcher:
    """The model with Self-Attention Guidance behind it."""
    from inner_guidance.nodes.self_attention_guidance import InnerSelfAttentionGuidance

    return InnerSelfAttentionGuidance.execute(model, **SAG | settings).result[0]


def host_sag(model: ModelPatcher) -> ModelPatcher:
    """The model with the host's own node behind it, at the same settings."""
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    return SelfAttentionGuidance.execute(model, SAG["scale"], SAG["blur_sigma"]).result[0]


def nag(model: ModelPatcher) -> ModelPatcher:
    """The model with Normalized Attention Guidance behind it, which compares the two prompts in a pass."""
    from comfy_extras.nodes_nag import NAGuidance

    return NAGuidance.execute(model, 5.0, 0.5, 1.5).result[0]


def attention_memory() -> dict[str, float]:
    """Bytes that a step needs at most beside a plain one, in what the middle of SDXL computes at 2048 px."""
    from .evaluations import evaluations, peak_bytes
    from .real_sizes import sdxl_middle

    model = sdxl_middle()
    peaks = {
        name: max(evaluations(of, 1, peak_bytes))
        for name, of in ((PLAIN, model), ("sag", sag(model)), ("host_sag", host_sag(model)))
    }
    return {name: peak - peaks[PLAIN] for name, peak in peaks.items()}


def import_seconds() -> float:
    """What the pack takes to import, once it is compiled: the first process does that."""
    command = [sys.executable, "-m", "tools.run", "benchmarks.import_time"]
    with tempfile.TemporaryDirectory() as compiled:
        environment = os.environ | {"PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
        took = [
            subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE).stdout
            for _ in range(1 + IMPORTS)
        ]
    return statistics.median(float(printed.split()[-1]) for printed in took[1:])


def ratios(steps: Steps, attention: Mapping[str, float], imported: float) -> Iterator[str]:
    """The table of what is to be reached."""
    yield from ("| what | measured | reach |", "|---|---|---|")
    titles = {name: row.title for name, row in steps.rows.items()}
    for row, beside, reach in GOALS:
        if row in titles and beside in titles:
            yield f"| time: {titles[row]} / {titles[beside]} | {steps.time(row, beside):.2f} | {reach:.2f} |"
    for row in ("dag", "dag_all"):
        if row in titles:
            ratio = steps.memory(row, PLAIN)
            yield f"| peak memory: {titles[row]} / {titles[PLAIN]} | {ratio:.2f} | {DAG_MEMORY:.2f} |"
    ratio = attention["sag"] / attention["host_sag"]
    yield (
        "| peak memory beside a plain step, middle of SDXL at 2048 px: SAG / the host's own SAG "
        f"({attention['sag'] / MIB:.0f} / {attention['host_sag'] / MIB:.0f} MiB) "
        f"| {ratio:.3f} | {ATTENTION_MEMORY:.1f} |"
    )
    yield f"| seconds to import the pack, beside the host | {imported:.2f} | {IMPORT_SECONDS:.1f} |"


def all_rows(steps: Steps) -> Iterator[str]:
    """The table of all rows."""
    yield (
        f"Every row, Stable Diffusion 1.5 at 512 px, one image; memory with {steps.weights / MIB:.0f} MiB of "
        "weights, which all rows share, and what a step needs beside them:"
    )
    yield from ("", "| name | row | time / plain | seconds | memory / plain | MiB |", "|---" * 6 + "|")
    for name, row in steps.rows.items():
        cost = steps.costs[name]
        yield (
            f"| `{name}` | {row.title} | {steps.time(name, PLAIN):.2f} | "
            f"{statistics.median(cost.seconds):.3g} | {steps.memory(name, PLAIN):.2f} | "
            f"{cost.peak / MIB:.0f} |"
        )


def machine() -> str:
    """What it ran on."""
    from comfy.model_management import get_torch_device

    if get_torch_device().type == "cpu":
        return f"{os.cpu_count()} CPU cores, float32"
    return f"{torch.cuda.get_device_name()}, float16"
