"""The table of a group of pictures: every row against the row without depth guidance."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..demo.scenes import FAR, NEAR
from . import markdown
from .dag_figures import (
    abs_rel_after_alignment,
    depth_features,
    distance_after_alignment,
    fidelity,
    planarity,
)
from .dag_judges import BENT, Judges, Seen
from .dag_pictures import BATCH
from .dag_rows import NONE, Group
from .paired_bootstrap import LEVEL, Bootstrapped, bootstrap, cell, mean, resamples
from .set_figures import frechet_to

RENDERS, BENT_RENDERS = "renders", "renders, bent"

LEGEND = (
    f"In brackets: the change from the row without guidance and its {LEVEL:.0%} interval, from a bootstrap "
    "over the seeds; bold where it excludes 0.",
    "",
    "- dFID: Frechet distance between the judge's depth maps and those of renders of as many other scenes, "
    "after the autoencoder. Image Frechet: the same for the recogniser's features.",
    "- head and judge differ: mean difference, after scale and shift, between the depth that the head "
    "reads from the finished picture (t = 100) and the judge's. Relative inverse depth, 0 to 1.",
    "- off the planes: RMS distance of the judge's depth from a plane through each of floor and walls.",
    "- off the target, AbsRel to the target: the judge's depth against the scene whose depth is the target, "
    "after scale and shift; head off the target: the same for the head's depth.",
    "- branches differ: mean |d_S - d_W|, which DCG lowers; prior's loss: L_dp, which DPG lowers. Both of "
    "the finished picture.",
    "- main object, objects found: of those that the prompt names, by the recogniser. sure of objects: "
    "its mean probability of them, which is certain sooner.",
    "- depth moved: mean difference between the judge's depth and that without guidance. CPU s: median "
    f"seconds of one thread to sample a picture, in batches of {BATCH}.",
    "- renders: the scenes of the targets, after the autoencoder. renders, bent: the same, warped by "
    f"{BENT:.0%} of their side, which shows how the figures respond to broken geometry.",
)


def table(judges: Judges, group: Group) -> list[str]:
    """The lines of a group's table. Every row has all pictures of the group."""
    count = group.samples
    rows = {name: judges.seen(group, name) for name in group.rows}
    reference, truth = judges.reference(group.seeds, count), judges.truth(group.seeds, count)
    shown = judges.shown(group.prompt_seeds, count) if group.captions else None
    framing = {RENDERS: judges.renders(group.seeds, count), BENT_RENDERS: judges.bent(group.seeds, count)}
    figures = {
        name: of_row(seen, rows[NONE], reference, truth, shown, group.side)
        for name, seen in (rows | framing).items()
    }
    columns = list(figures[NONE])
    cells = {
        name: [cell(found[c], None if name in (NONE, *framing) else figures[NONE][c]) for c in columns]
        for name, found in figures.items()
    }
    costs = {name: judges.drawings.seconds(group, name) for name in rows}
    return [
        f"## {group.title}",
        "",
        f"{count} pictures per row, {group.steps} steps of {group.sampler}, {group.scheduler}, CFG "
        f"{group.cfg:g}; dFID of {group.side} x {group.side} cells.",
        "",
        f"The judge on {count} renders that it never saw: "
        + "; ".join(f"{name}: {one}" for name, one in judges.judge_accuracy(group.seeds, count).items())
        + ".",
        "",
        *markdown.table(columns, cells),
        "",
        "CPU s (as a ratio): "
        + ", ".join(f"{name} {one:.2f} ({one / costs[NONE]:.2f})" for name, one in costs.items())
        + ".",
        "",
    ]


def of_row(
    seen: Seen,
    baseline: Seen,
    reference: Seen,
    truth: Tensor,
    shown: tuple[Tensor, Tensor] | None,
    side: int,
) -> dict[str, Bootstrapped]:
    """The figures of a row, by column."""
    drawn = resamples(len(seen.depth))

    def distance(of: Callable[[Seen], Tensor]) -> Bootstrapped:
        to = frechet_to(of(reference))
        return bootstrap(lambda features: sum(to(features)), of(seen), drawn)

    def average(values: Tensor) -> Bootstrapped:
        return bootstrap(mean, values, drawn)

    figures = {
        "dFID": distance(lambda s: depth_features(s.depth, side)),
        "image Frechet": distance(lambda s: s.features),
        "head and judge differ": average(distance_after_alignment(seen.head, seen.depth)),
        "off the planes": average(planarity(seen.depth, seen.surfaces)),
        "off the target": average(distance_after_alignment(seen.depth, truth)),
        "head off the target": average(distance_after_alignment(seen.head, truth)),
        "AbsRel to the target": average(abs_rel_after_alignment(seen.depth, truth, NEAR, FAR)),
        "branches differ": average(seen.consistency),
        "prior's loss": average(seen.prior),
    }
    if shown is not None:
        present, main = shown
        main_found, share = fidelity(seen.objects, present, main)
        figures["main object"], figures["objects found"] = average(main_found), average(share)
        figures["sure of objects"] = average((seen.objects * present).sum(1) / present.sum(1))
    figures["depth moved"] = average((seen.depth - baseline.depth).abs().mean((1, 2, 3)))
    return figures
