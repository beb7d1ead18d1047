"""Flux and Z-Image in their real width, with few blocks and random weights: SAG, DAG and records.

    python -m tools.run benchmarks.real_transformers

Two steps at 256 px each. Checks that everything is finite, that guidance changes the latent, and that
recording does not.
"""

from __future__ import annotations

import sys
import time

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .models import REAL_SIZES, prompt
from .rows import NOT_OF, rows_of

LATENT = (1, 16, 32, 32)
STEPS = 2
CFG = 4.0
RECORDED, GUIDED = ("recording", "features"), ("sag", "dag", "dag_checkpointing")


def main() -> None:
    """Print a row for each model and node."""
    failed = 0
    print("| model | node | seconds | what happened |\n|---|---|---|---|", flush=True)
    with torch.inference_mode():
        for name in ("flux", "z_image"):
            model = REAL_SIZES[name].model()
            rows = rows_of(model, NOT_OF[name])
            plain = sampled(model)
            for node in (*RECORDED, *GUIDED):
                started = time.monotonic()
                sound, said = judged(node, sampled(rows[node].model), plain)
                failed += not sound
                took = time.monotonic() - started
                print(f"| {name} | {rows[node].title} | {took:.0f} | {said} |", flush=True)
            del model, rows
    if failed:
        sys.exit(f"{failed} nodes failed on transformers of real width.")
    print("SAG, DAG and records work on transformers of real width.")


def sampled(model: ModelPatcher) -> Tensor:
    """The latent after two steps."""
    latent = torch.zeros(LATENT)
    noise = comfy.sample.prepare_noise(latent, seed=0)
    prompts = prompt(model, 0), prompt(model, 1)
    return comfy.sample.sample(
        model, noise, STEPS, CFG, "euler", "simple", *prompts, latent, disable_pbar=True, seed=0
    )


def judged(node: str, latent: Tensor, plain: Tensor) -> tuple[bool, str]:
    """Whether a latent is as it should be, and what it is."""
    if not (latent.isfinite().all() and plain.isfinite().all()):
        return False, "not finite"
    if node in RECORDED:
        same = torch.equal(latent, plain)
        return same, "recorded: same latent" if same else "recording changes the latent"
    change = float((latent - plain).std() / plain.std())
    return change > 1e-3, f"guidance: {change:.1%} of the latent's deviation"
