"""Rows of dag_experiment.py that try to follow a target and keep the objects of the prompt."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..depth_head.calibration import LossLevels
from ..guidance import depth_aware as dag
from ..guidance.hinge import Level
from ..host.steering.dag_losses import DepthAwareSettings, of_batch
from .dag_rows import EQUAL_COST, NONE, Group, Row, blurred_target, only
from .seeds import CONFIRMING, REPORTING, TUNING

LAST_TIME = 400
"""The time at which a target ends by default: 60 % of the sampling."""
OTHER_SCENES = 10_000
"""How many seeds later the scenes are whose captions do not describe a target."""
SURE = 0.027
"""The RMS difference of the branches on renders (`demo.train_depth calibrate`)."""
REAL_TARGET = LossLevels((50, 200, 500, 800), (0.014, 0.016, 0.023, 0.061), (0.009, 0.012, 0.016, 0.036))
"""Levels of the target loss of 16 renders whose target is their own depth, read by the demo head."""
WEAK_READ = {"consistency_scale": 1e-6, "self_start_percent": 0.0}
"""Inputs with which the weak branch is read from the first step on, and pulls by next to nothing."""


def share_of_range(time: Tensor) -> float:
    """1 at the first step, 0 where the target ends."""
    return max(0.0, (time.max().item() - LAST_TIME) / (1000 - LAST_TIME))


def falling(term: dag.Term, settings: DepthAwareSettings, time: Tensor) -> dag.Term:
    """A strength that falls evenly to 0 where the target ends."""
    return term._replace(strength=term.strength * share_of_range(time))


def rising(term: dag.Term, settings: DepthAwareSettings, time: Tensor) -> dag.Term:
    """A strength that rises evenly from 0."""
    return term._replace(strength=term.strength * (1 - share_of_range(time)))


def as_close_as_renders(term: dag.Term, settings: DepthAwareSettings, time: Tensor) -> dag.Term:
    """A hinge: a target asks for no more than renders of it have."""
    return term._replace(level=Level(*REAL_TARGET.at(time)))


def where_sure(term: dag.Term, settings: DepthAwareSettings, time: Tensor) -> dag.Term:
    """A target that counts less where the branches differ."""
    if term.strength < 1e-3 or settings.target is None:
        return term
    maps = settings.target

    def loss(strong: Tensor, weak: Tensor) -> Tensor:
        doubt = (strong.detach() - weak.detach()).square() / SURE**2
        return dag.target_loss(strong, of_batch(maps, strong), 1 / (1 + doubt))

    return term._replace(loss=loss)


def screened() -> dict[str, Group]:
    """The groups of `screen`: ways to follow a target, one change at a time, and then its blur."""
    target, blurred = Row(only("target")), blurred_target()
    latent = replace(target, latent_head=True)
    shorter = Row(only("target") | {"target_end_percent": 0.4})
    forms = {
        NONE: Row(None),
        "target": target,
        "blurred": blurred,
        "as close as renders": replace(target, terms=as_close_as_renders),
        "latent head": latent,
        "half as strong": Row(only("target", 0.5)),
        "to 40 %": shorter,
        "to 50 %": Row(only("target") | {"target_end_percent": 0.5}),
        "in 15 steps": replace(target, steps=15),
        "each early step twice": replace(target, repeats=2),
        "falling": Row(only("target", 2.0), terms=falling),
        "rising": Row(only("target", 2.0), terms=rising),
        "where sure": Row(only("target") | WEAK_READ, terms=where_sure),
        "best of 8 noises": replace(target, noises=8),
        "best of 8 noises, to 40 %": replace(shorter, noises=8),
    }
    blurs = {
        NONE: Row(None),
        "target": target,
        "blur 1/16": Row(only("target") | {"target_blur": 1 / 16}),
        "blurred": blurred,
        "blur 1/4": Row(only("target") | {"target_blur": 1 / 4}),
        "blurred, half as strong": blurred_target(0.5),
        "blurred, 1.5 times as strong": blurred_target(1.5),
        "blurred, twice as strong": blurred_target(2.0),
        "blurred, to 70 %": blurred_target(target_end_percent=0.7),
        "blurred, in 14 steps": replace(blurred, steps=14),
        "blurred, to 70 %, in 14 steps": replace(blurred_target(target_end_percent=0.7), steps=14),
        "blurred, 1.25 times as strong, in 14 steps": replace(blurred_target(1.25), steps=14),
        "blurred, 1.5 times as strong, in 14 steps": replace(blurred_target(1.5), steps=14),
        "latent head": latent,
        "latent head, blurred": replace(blurred, latent_head=True),
    }
    group = Group("A target with captions", forms, 60, TUNING, steps=12, cfg=3.0, captions=True, side=4)
    of_blur = replace(group, title="Blur, strength and end of a target", rows=blurs, samples=200, side=8)
    return {"forms": group, "blurs": of_blur}


def kept() -> dict[str, Group]:
    """The groups of `objects`: what `screen` found, targets of other scenes, and a setting chosen last."""
    groups = screened()
    rows = {**groups["forms"].rows, **groups["blurs"].rows}

    def of(*names: str) -> dict[str, Row]:
        return {name: rows[name] for name in (NONE, *names)}

    found = of(
        "target",
        "as close as renders",
        "latent head",
        "where sure",
        "in 15 steps",
        "falling",
        "blurred",
        "blurred, in 14 steps",
        "blurred, 1.5 times as strong",
        "blurred, 1.5 times as strong, in 14 steps",
    )
    captions = replace(
        groups["blurs"],
        title=groups["forms"].title,
        rows=found | {EQUAL_COST: Row(None, steps=17)},
        seeds=REPORTING,
    )
    other = replace(
        captions,
        title="A target that the captions do not describe",
        rows=of("target", "blurred", "blurred, 1.5 times as strong", "latent head"),
        prompts_after=OTHER_SCENES,
    )
    confirmed = replace(
        captions,
        title="The best of these, and a strength between two of them, on other seeds",
        rows=of("blurred, in 14 steps")
        | {"blurred, 1.15 times as strong, in 14 steps": replace(blurred_target(1.15), steps=14)},
        samples=1000,
        seeds=CONFIRMING,
    )
    of_samplers = {
        sampler: replace(
            other,
            title=f"The same with {sampler}",
            rows=of("target", "blurred"),
            samples=60,
            sampler=sampler,
            side=4,
        )
        for sampler in ("dpmpp_3m_sde", "dpm_fast")
    }
    return {"captions": captions, "other": other, **of_samplers, "confirmed": confirmed}
