"""The seeds of the experiments, divided once: a figure that is reported uses no seed that chose a setting.

A seed is the noise of a picture and a held-out scene of the demo world, whose caption is its prompt and whose
depth is its target. docs/results/protocol.md says how the ranges are used.
"""

from __future__ import annotations

from ..demo.renders import HELD_OUT

HEADS_LABELLED = range(HELD_OUT + 40_000, HELD_OUT + 60_000)
"""Scenes that heads and priors are trained on."""
HEADS_JUDGED = range(HELD_OUT + 60_000, HELD_OUT + 70_000)
"""Scenes that heads are compared on."""
PRIOR_TUNING = range(HELD_OUT + 70_000, HELD_OUT + 80_000)
"""Scenes on which size and levels of the prior were chosen."""
SPECTRUM = range(HELD_OUT + 80_000, HELD_OUT + 90_000)
"""Scenes of the frequency analysis, which chooses nothing."""

TUNING = range(HELD_OUT + 100_000, HELD_OUT + 120_000)
"""Pictures on which settings are chosen."""
TUNING_REFERENCE = range(HELD_OUT + 120_000, HELD_OUT + 140_000)
"""Renders that those pictures are compared with."""
LATENT_HEAD_TUNING = range(HELD_OUT + 200_000, HELD_OUT + 210_000)
"""Pictures on which the form of the latent head was chosen."""

REPORTING = range(2 * HELD_OUT, 2 * HELD_OUT + 20_000)
"""Pictures that are reported."""
REPORTING_REFERENCE = range(2 * HELD_OUT + 20_000, 2 * HELD_OUT + 40_000)
"""Renders that those pictures are compared with."""

CONFIRMING = range(2 * HELD_OUT + 40_000, 2 * HELD_OUT + 60_000)
"""Pictures that report settings which were chosen after the reported tables."""

REFERENCES = {TUNING: TUNING_REFERENCE, REPORTING: REPORTING_REFERENCE, CONFIRMING: REPORTING_REFERENCE}
"""The renders that pictures are compared with, by the pictures' seeds."""
