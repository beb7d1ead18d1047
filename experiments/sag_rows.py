"""The rows of sag_experiment.py: how each row of pictures is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .seeds import REPORTING, TUNING

NONE = "none"
"""Name of the row without guidance, the first of every group."""
STEPS = 12
PERTURBED, PERTURBED_CHOSEN = 3.0, 12.0
"""Scales of the host's Perturbed-Attention Guidance: its node's default, and what the sweep chose."""
CLASSIFIER = 3.0
"""Scale of Classifier Guidance, chosen by eye on seeds below 100."""
SWEPT: Mapping[str, Any] = {"space": "v", "scale": 1.5}
"""Inputs of the node, as far as they are not its defaults, from which the blur is swept."""
CHOSEN: Mapping[str, Any] = {**SWEPT, "blur_sigma": 8.0}
"""Inputs of the node that this sweep chose for the UNet, and from which its other inputs are swept."""
CHOSEN_TRANSFORMER: Mapping[str, Any] = {**CHOSEN, "scale": 0.25}
"""The same for the transformer."""
JUDGES = ("The demo model's judges", "Judges of seed 1", "Judges of seed 2")
"""Titles of tables by the training seed of their judges."""

Seen = dict[str, Tensor]
"""What the judges see in N pictures.

features (N, C) and objects (N, kinds of solids), logits, of the recogniser; depth (N, CELLS^2) of the depth
judge; detail (N,); seconds (N,) of CPU to sample; scale (N,), the effective CFG scale, nan at CFG 1.
"""


@dataclass(frozen=True)
class Row:
    """The guidance of a row, and what it has instead of its group's settings."""

    attention: Mapping[str, Any] | None = None
    """Inputs of Self-Attention Guidance that are not its defaults; None: without it."""
    perturbed: float = 0.0
    """Scale of the host's Perturbed-Attention Guidance; 0: without it."""
    classifier: float = 0.0
    """Scale of Classifier Guidance, to the class of each batch; 0: without it."""
    classifier_seed: int = 0
    """Training seed of the classifier head; 0 for the demo model's."""
    square: bool = False
    """Whether the mask is a square in the middle, of the area that attention has."""
    steps: int = STEPS
    as_strong_as: str = ""
    """Name of the row at whose effective scale this one has CFG."""


@dataclass(frozen=True)
class Group:
    """The rows of one table, by name. All draw the same seeds."""

    title: str
    rows: Mapping[str, Row]
    seeds: range
    pictures: int
    """Pictures in each row."""
    cfg: float = 1.0
    captions: bool = False
    """Whether the prompts are the captions of the seeds' scenes; otherwise they are empty."""
    classes: bool = False
    """Whether the class of each batch is looked for in its pictures."""
    judges: int = 0
    """Training seed of the networks that judge; 0 for those of the demo model."""


def reported(transformer: bool) -> dict[str, Group]:
    """The groups that are reported. The host's PAG replaces the attention of UNets only."""
    chosen = CHOSEN_TRANSFORMER if transformer else CHOSEN

    def rows(cfg: float) -> dict[str, Row]:
        found = {
            NONE: Row(),
            "none, equal cost": Row(steps=2 * STEPS if cfg == 1 else 3 * STEPS // 2),
            "SAG": Row(attention={}),
            "SAG, chosen": Row(attention=chosen),
        }
        if not transformer:
            found["SAG, chosen, block u1"] = Row(attention={**chosen, "blocks": "u1"})
        if cfg == 1:
            found["SAG, chosen, 0.2 to 1"] = Row(attention={**chosen, "start_percent": 0.2})
        if cfg > 1:
            found["none, as strong as chosen"] = Row(as_strong_as="SAG, chosen")
        if not transformer:
            found["PAG 1"] = Row(perturbed=1.0)
            found["SAG + PAG 1"] = Row(attention=chosen, perturbed=1.0)
        return found

    groups = {"empty": Group("Empty prompt, CFG 1", rows(1), REPORTING, 1000)}
    if not transformer:
        groups["classifier"] = Group(
            "With classifier guidance: empty prompt, CFG 1",
            {
                NONE: Row(),
                "none, equal cost": Row(steps=2 * STEPS),
                "SAG, chosen": Row(attention=CHOSEN),
                "classifier": Row(classifier=CLASSIFIER),
                "SAG, chosen + classifier": Row(attention=CHOSEN, classifier=CLASSIFIER),
            },
            REPORTING,
            600,
            classes=True,
        )
    for cfg in (1.0, 3.0, 2.0, 5.0):
        groups[f"captions-{cfg:g}"] = Group(
            f"Captions, CFG {cfg:g}", rows(cfg), REPORTING, 200, cfg, captions=True
        )
    if not transformer:
        perturbed = {NONE: Row()} | {
            f"PAG {scale:g}": Row(perturbed=scale) for scale in (PERTURBED, PERTURBED_CHOSEN)
        }
        groups["PAG"] = Group(
            "The host's PAG, default and best scale: empty prompt, CFG 1", perturbed, REPORTING, 1000
        )
        groups["PAG-captions-1"] = replace(
            groups["PAG"],
            title="The host's PAG, default and best scale: captions, CFG 1",
            pictures=200,
            captions=True,
        )
    return groups


def of_other_judges(transformer: bool) -> dict[str, Group]:
    """What `reported` says without a prompt, by judges of three training seeds."""
    plain = reported(transformer)["empty"]
    names = (NONE, "none, equal cost", "SAG, chosen", "SAG, chosen, block u1", "SAG, chosen, 0.2 to 1")
    rows = {name: plain.rows[name] for name in names if name in plain.rows}
    return {
        f"seed-{seed}": replace(plain, title=title, rows=rows, pictures=400, judges=seed)
        for seed, title in enumerate(JUDGES)
    }


def of_other_classifiers(transformer: bool) -> dict[str, Group]:
    """Classifier guidance of the UNet, alone and with SAG, by heads and judges of three training seeds."""
    if transformer:
        return {}
    rows = {NONE: Row()}
    for attention, title in ((None, "classifier"), (CHOSEN, "SAG, chosen + classifier")):
        for seed, head in enumerate(("the demo model's", "seed 1", "seed 2")):
            rows[f"{title}, {head}"] = Row(attention, classifier=CLASSIFIER, classifier_seed=seed)
    return {
        f"seed-{seed}": Group(
            f"Empty prompt, CFG 1. {title}", rows, REPORTING, 100, classes=True, judges=seed
        )
        for seed, title in enumerate(JUDGES)
    }


def swept(transformer: bool) -> dict[str, Group]:
    """The groups of the sweep: scale in both spaces, the blur, then one input at a time, on tuning seeds."""
    chosen = CHOSEN_TRANSFORMER if transformer else CHOSEN
    blocks = ("b1", "b3", "b5") if transformer else ("d0", "d1", "u0", "u1", "u2", "u3", "m0, u0-u1")
    scales: dict[str, dict[str, dict[str, Any]]] = {
        "eps": {f"eps, {s:g}": {"scale": s} for s in (-1.0, -0.5, 0.25, 0.75, 1.5, 3.0)},
        "v": {f"v, {s:g}": {"space": "v", "scale": s} for s in (0.75, 1.5, 3.0, 5.0)},
    }
    blurs = {f"sigma {b:g}": {"blur_sigma": b} for b in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)}
    values: dict[str, dict[str, dict[str, Any]]] = {
        "scale": {
            f"scale {s:g}": {"scale": s}
            for s in ((0.1, 0.5, 1.5) if transformer else (0.5, 0.75, 1.0, 3.0, 5.0))
        },
        "window": {
            f"{start:g} to {end:g}": {"start_percent": start, "end_percent": end}
            for start, end in ((0.0, 0.2), (0.0, 0.4), (0.2, 0.6), (0.4, 0.8), (0.6, 1.0), (0.2, 1.0))
        },
        "blocks": {name: {"blocks": name} for name in blocks},
        "mask": {name: {"mask": name} for name in ("global", "high frequency", "random")},
        "threshold": {f"threshold {t:g}": {"threshold": t} for t in (0.8, 1.3)},
        "every": {f"every {n} steps": {"every_n_steps": n} for n in (2, 3)},
    }
    rows = {
        kind: {NONE: Row()} | {name: Row(attention=inputs) for name, inputs in of_space.items()}
        for kind, of_space in scales.items()
    }
    rows["blur"] = {NONE: Row(), "v, 1.5": Row(attention=SWEPT)} | {
        name: Row(attention={**SWEPT, **inputs}) for name, inputs in blurs.items()
    }
    rows |= {
        kind: {NONE: Row(), "chosen": Row(attention=chosen)}
        | {name: Row(attention={**chosen, **inputs}) for name, inputs in of_kind.items()}
        for kind, of_kind in values.items()
    }
    rows["mask"]["square"] = Row(attention=chosen, square=True)
    if not transformer:
        rows["PAG"] = {NONE: Row()} | {f"PAG {s:g}": Row(perturbed=s) for s in (1.0, 3.0, 6.0, 12.0, 24.0)}
    groups = {
        kind: Group(f"Empty prompt, CFG 1: {kind}", of_kind, TUNING, 150 if kind in {*values, "PAG"} else 60)
        for kind, of_kind in rows.items()
    }
    branches = {name: Row(attention={**SWEPT, "branch": name}) for name in ("negative", "positive")}
    with_captions = {kind: rows[kind] for kind in ("eps", "v")} | {"branch": {NONE: Row()} | branches}
    for kind, of_kind in with_captions.items():
        groups[f"{kind}-3"] = Group(f"Captions, CFG 3: {kind}", of_kind, TUNING, 60, 3.0, captions=True)
    return groups
