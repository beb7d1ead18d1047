"""The rows of `dag_experiment sweep`: the strength and the form of depth guidance, one setting at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..guidance.depth_aware import prior_loss
from .dag_rows import NONE, Group, Row, both, only
from .seeds import TUNING


def literal_prior_loss(d: Tensor, etas: Tensor, abar: float, eps_phi: Callable[[Tensor], Tensor]) -> Tensor:
    """L_dp as the paper has it; replaces depth_aware.denoised_prior_loss."""
    return prior_loss(d, etas[0], abar, eps_phi)


# The settings that the sweep found. It varies one of them at a time.
SWEPT_STEP = 0.3
LITERAL = {"denoised_prior_loss": literal_prior_loss}
SWEPT = {
    "mode": "robust",
    "start_percent": 0.0,
    "end_percent": 1.0,
    "self_start_percent": 0.6,
    "target_end_percent": 0.6,
    "target_blur": 0.0,
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
    """The groups of `sweep`: one setting at a time."""

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
        "robust": Group("Robust mode", {NONE: Row(None)} | rows, 60, TUNING, steps=12, side=4),
        "paper": Group(
            "Paper mode",
            {NONE: Row(None)} | weights,
            40,
            TUNING,
            sampler="ddpm",
            scheduler="normal",
            side=4,
        ),
    }
