"""Measures what guidance costs: time and memory of a sampling step, with and without it.

    python -m tools.run benchmarks.speed [--rows NAME ...] [--repeats N]      writes speed.md
    python -m tools.run --device gpu benchmarks.speed --model sdxl            prints that model's rows
    python -m tools.run benchmarks.speed --model z_image --half               at half the width and height

The models have random weights: Stable Diffusion 1.5 at 512 px, and the middle block of SDXL with the shapes
of 2048 px; or one of models.REAL_SIZES. A step is one evaluation that the sampler asks for, with a positive
and a negative prompt.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from comfy.model_management import get_torch_device, get_torch_device_name

from ..tools.setup_host import ROOT
from .evaluations import evaluations, peak_bytes
from .models import REAL_SIZES, sdxl_middle
from .rows import NOT_OF, PLAIN, host_sag, rows_of, sag
from .speed_tables import all_rows, ratios
from .step_costs import Steps

TABLE = Path(__file__).with_suffix(".md")
COMMAND = "python -m tools.run benchmarks.speed"
IMPORTS = 5


def main() -> None:
    """Measure, then write and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", help="rows of the last table to measure, besides the plain step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", choices=REAL_SIZES, help="the rows of this model alone")
    parser.add_argument("--half", action="store_true", help="half the width and height of --model's images")
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    if options.model:
        with torch.inference_mode():
            steps = measured_steps(options.model, options.rows, options.repeats, options.half)
        size = ", at half of that" if options.half else ""
        print(*all_rows(steps, f"{REAL_SIZES[options.model].title}{size}, {machine()}"), sep="\n")
        return
    started = time.monotonic()
    imported = import_seconds()
    with torch.inference_mode():
        attention = attention_memory()
        steps = measured_steps("sd15", options.rows, options.repeats)
    minutes = (time.monotonic() - started) / 60
    lines = [
        "# What guidance costs",
        "",
        f"`{COMMAND} --repeats {options.repeats}`: {minutes:.0f} minutes on "
        f"{machine()}, PyTorch {torch.__version__}.",
        "",
        *ratios(steps, attention, imported),
        "",
        *all_rows(steps, REAL_SIZES["sd15"].title),
    ]
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(options.out.read_text(encoding="utf-8"))


def measured_steps(name: str, names: Iterable[str] | None, repeats: int, half: bool = False) -> Steps:
    """The cost of each row, for a model of REAL_SIZES. half: at half the width and height."""
    model = REAL_SIZES[name].model()
    rows = rows_of(model, NOT_OF[name])
    if names is not None:
        rows = {name: row for name, row in rows.items() if name in {PLAIN, *names}}
    *batch, height, width = REAL_SIZES[name].latent
    size = (height // 2, width // 2) if half else (height, width)
    return Steps(rows, model.model_size(), repeats, (*batch, *size))


def attention_memory() -> dict[str, float]:
    """Peak bytes of a step above those of a plain step, for the middle block of SDXL at 2048 px."""
    model = sdxl_middle()
    peaks = {
        name: max(evaluations(of, 1, peak_bytes, REAL_SIZES["sd15"].latent))
        for name, of in ((PLAIN, model), ("sag", sag(model)), ("host_sag", host_sag(model)))
    }
    return {name: peak - peaks[PLAIN] for name, peak in peaks.items()}


def import_seconds() -> float:
    """Median time to import the pack, in fresh processes. The first one compiles it and does not count."""
    command = [sys.executable, "-m", "tools.run", "benchmarks.import_time"]
    with tempfile.TemporaryDirectory() as compiled:
        environment = os.environ | {"PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
        took = [
            subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE).stdout
            for _ in range(1 + IMPORTS)
        ]
    return statistics.median(float(printed.split()[-1]) for printed in took[1:])


def machine() -> str:
    """The device and the precision of the measurement."""
    if get_torch_device().type == "cpu":
        return f"{os.cpu_count()} CPU cores, float32"
    return f"{get_torch_device_name(get_torch_device())}, half precision"
