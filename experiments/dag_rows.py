"""The rows of dag_experiment.py: the guidance that each row of pictures is drawn with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..guidance.depth_aware import Term, fit_target, per_image_mean
from ..guidance.hinge import Level
from .seeds import REPORTING

Terms = Callable[[Term, Any, Tensor], Term]
"""A term, the DepthAwareSettings that act, and the time (B,) to another term."""

NONE = "none"
"""Name of the row without guidance, the first of every group."""
EQUAL_COST = "none, equal cost"
"""Name of the row without guidance whose steps take the time of a target."""


@dataclass(frozen=True)
class Row:
    """How a row differs from the node's defaults."""

    settings: Mapping[str, Any] | None
    """Inputs of the node that are not its defaults, by name; None: no guidance."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Values for constants of guidance/depth_aware.py, by name."""
    step: float | None = None
    """Value for ROBUST_STEP; the node's scales are multiplied by its ratio to the constant."""
    prior: Path | None = None
    """File of a depth prior; None: the demo model's own."""
    head: Path | None = None
    """File of a head of features; None: the demo model's own."""
    latent_head: bool = False
    """Whether depth is read from the clean estimate, the result of CFG, instead of the UNet's features."""
    losses: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    """Functions that replace losses, or the slope of the hinge, of guidance/depth_aware.py, by name."""
    calibrated: bool = True
    """Whether the head knows real images; if not, every image is pushed."""
    terms: Terms | None = None
    """Replaces each term of the losses; None: as they are."""
    repeats: int = 1
    """How often each step of the first 40 % is taken, with fresh noise in between; 1: the group's sampler."""
    noises: int = 1
    """Starting noises, of which an image takes the one whose first estimate is closest to its target."""
    steps: int | None = None
    """Sampling steps; None: the group's."""


@dataclass(frozen=True)
class Group:
    """The rows of one table, by name. All draw the same seeds with the same sampler."""

    title: str
    rows: Mapping[str, Row]
    samples: int
    """Pictures in each row."""
    seeds: range
    """Of noise and of scenes, from seeds.py."""
    sampler: str = "dpmpp_2m"
    scheduler: str = "karras"
    steps: int = 20
    cfg: float = 1.0
    captions: bool = False
    """Whether the prompts are captions of scenes; otherwise they are empty."""
    prompts_after: int = 0
    """How many seeds after that of the target a prompt's scene is; 0: the prompt describes the target."""
    side: int = 8
    """dFID compares depth maps of side x side cells."""
    judges: int = 0
    """Training seed of depth judge and recogniser; 0 for those of the demo model."""

    def batches(self, size: int) -> range:
        """The first seeds of the batches of pictures."""
        return self.seeds[: self.samples : size]

    @property
    def prompt_seeds(self) -> range:
        """Of the scenes that the prompts describe."""
        return range(self.seeds.start + self.prompts_after, self.seeds.stop + self.prompts_after)


def aligned_consistency_loss(d_strong: Tensor, d_weak: Tensor) -> Tensor:
    """L_dc with the strong map fitted to the weak one; replaces depth_aware.consistency_loss."""
    return per_image_mean((fit_target(d_strong, d_weak) - d_weak).square())


def hard_slope(loss: Tensor, level: Level) -> Tensor:
    """Of a hinge with a sharp corner: whether L > mu; replaces depth_aware.hinge_slope."""
    return (loss.detach() > level.mean).to(loss.dtype)


def only(loss: str, scale: float = 1.0) -> dict[str, float]:
    """Scales of the node with one loss alone."""
    scales = dict.fromkeys(("consistency_scale", "prior_scale", "target_scale"), 0.0)
    return scales | {f"{loss}_scale": scale}


def blurred_target(scale: float = 1.0, **inputs: float) -> Row:
    """A target with the blur that keeps objects."""
    return Row(only("target", scale) | {"target_blur": 0.125} | inputs)


def both(consistency: float = 1.0, prior: float = 1.0) -> dict[str, float]:
    """Scales of the node with DCG and DPG, without a target."""
    return {"consistency_scale": consistency, "prior_scale": prior, "target_scale": 0.0}


def paper_mode(consistency: float, prior: float) -> Row:
    """The paper's form, with its weight w = 40 times these strengths."""
    return Row({"mode": "paper"} | both(consistency, prior))


def compared() -> dict[str, Group]:
    """The groups of `compare`: the node's defaults, then variations of the settings that matter most."""
    losses = ("consistency_scale", "prior_scale", "target_scale")
    names = {"DCG": losses[:1], "DPG": losses[1:2], "DCG + DPG": losses[:2], "target": losses[2:]}
    defaults = {NONE: Row(None)} | {
        name: Row({loss: 0.0 for loss in losses if loss not in acting}) for name, acting in names.items()
    }
    self_guided = {name: row for name, row in defaults.items() if name != "target"}
    variations = {
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
    empty = Group(
        "Robust mode, empty prompt, CFG 1",
        self_guided | {EQUAL_COST: Row(None, steps=20)},
        1000,
        REPORTING,
        steps=12,
    )
    captions = replace(
        empty,
        title="Robust mode, captions, CFG 3",
        rows=defaults
        | {
            "target, blurred": blurred_target(),
            "target, blurred, in 14 steps": replace(blurred_target(), steps=14),
            "target, blurred, 1.25 times as strong, in 14 steps": replace(blurred_target(1.25), steps=14),
            "target, blurred, 1.5 times as strong, in 14 steps": replace(blurred_target(1.5), steps=14),
            EQUAL_COST: Row(None, steps=17),
        },
        cfg=3.0,
        captions=True,
    )
    ancestral = replace(
        empty,
        title="Paper mode, 100 ancestral steps: empty prompt, CFG 1",
        rows={NONE: defaults[NONE], EQUAL_COST: Row(None, steps=170)}
        | {"DCG, w = 40": paper_mode(1.0, 0.0), "DPG, w = 40": paper_mode(0.0, 1.0)}
        | {f"DCG + DPG, w = {40 * scale:g}": paper_mode(scale, scale) for scale in (0.25, 1.0, 4.0)},
        samples=60,
        sampler="ddpm",
        scheduler="normal",
        steps=100,
    )
    return {
        "empty": empty,
        "captions": captions,
        "variations": replace(
            empty, title="Other settings: empty prompt, CFG 1", rows=defaults | variations, samples=100
        ),
        "paper": ancestral,
        "few": replace(
            captions,
            title="Few steps: captions, CFG 3",
            rows=self_guided | {EQUAL_COST: Row(None, steps=9)},
            samples=100,
            steps=6,
        ),
        "few-empty": replace(
            empty,
            title="Few steps: empty prompt, CFG 1",
            rows=self_guided | {EQUAL_COST: Row(None, steps=12)},
            samples=100,
            steps=6,
        ),
        "target": replace(
            captions, title="A target with captions, by strength and window", rows=of_target, samples=200
        ),
    }


def hinged() -> dict[str, Group]:
    """The groups of `hinge`: consistency and prior push every image, or what is worse than real ones."""
    rows = {NONE: Row(None)}
    for name, loss in (("DCG", "consistency"), ("DPG", "prior")):
        rows |= {
            f"{name}, every image": Row(only(loss, 0.5), calibrated=False),
            f"{name}, hinge": Row(only(loss, 0.5)),
            f"{name}, sharp hinge": Row(only(loss, 0.5), losses={"hinge_slope": hard_slope}),
        }
    empty = Group("Empty prompt, CFG 1", rows, 200, REPORTING, steps=12)
    return {
        "empty": empty,
        "captions": replace(empty, title="Captions, CFG 3", cfg=3.0, captions=True),
    }
