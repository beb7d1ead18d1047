"""The table of a group of pictures: every row against the row without depth guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ..demo.measures import frechet_distance
from ..demo.scenes import FAR, NEAR
from . import markdown
from .dag_figures import (
    Cell,
    Change,
    abs_rel_after_alignment,
    cell_text,
    change_of_distance,
    change_of_mean,
    depth_features,
    distance_after_alignment,
    fidelity,
    planarity,
)
from .dag_judges import BENT, Judges, Seen
from .dag_pictures import BATCH, TURNS
from .dag_rows import NONE, Group

RESAMPLES = 100

LEGEND = (
    "In brackets: the change from the row without guidance at the same seeds, ± its standard deviation "
    f"(Frechet distances: {RESAMPLES} resamplings of pictures and reference; other figures: over the "
    "pictures).",
    "",
    "- dFID: Frechet distance between the judge's depth maps and those of renders of as many other scenes, "
    "after the autoencoder. Image Frechet: the same for the recogniser's features.",
    "- head and judge differ: mean difference, after scale and shift, between the depth that the UNet's head "
    "reads from the finished picture (t = 100) and the judge's. Relative inverse depth, 0 to 1.",
    "- off the planes: RMS distance of the judge's depth from a plane through each of floor and walls.",
    "- off the target, AbsRel to the target: the judge's depth against the scene whose depth is the target, "
    "after scale and shift; head off the target: the same for the head's depth.",
    "- branches differ: mean |d_S - d_W|, which DCG lowers; prior's loss: L_dp, which DPG lowers. Both of "
    "the finished picture.",
    "- depth moved: mean difference between the judge's depth and that without guidance. s/image, where "
    f"given: seconds to sample a picture, in batches of {BATCH}, median of {TURNS}; the rows take turns.",
    "- renders: the scenes themselves, after the autoencoder. renders, bent: the same, warped by "
    f"{BENT:.0%} of their side, which shows how the figures respond to broken geometry.",
)


def table(judges: Judges, group: Group, seconds: Mapping[str, float]) -> list[str]:
    """The lines of a group's table, of the rows that are complete.

    seconds: seconds that sampling a picture takes, by row, where measured.
    """
    count = group.samples
    rows = {name: seen for name in group.rows if (seen := judges.seen(group, name)) is not None}
    if NONE not in rows:
        return []
    reference, truth, shown = (
        judges.reference(group.seeds, count),
        judges.truth(group.seeds, count),
        judges.shown(group.seeds, count),
    )
    baseline = rows[NONE]

    def figures(seen: Seen) -> dict[str, Cell]:
        def frechet(of: Callable[[Seen], Tensor]) -> Change:
            return change_of_distance(of(seen), of(baseline), of(reference), frechet_distance, RESAMPLES)

        def mean(of: Callable[[Seen], Tensor]) -> Change:
            return change_of_mean(of(seen), of(baseline))

        cells: dict[str, Cell] = {
            "dFID": frechet(lambda s: depth_features(s.depth, group.side)),
            "image Frechet": frechet(lambda s: s.features),
            "head and judge differ": mean(lambda s: distance_after_alignment(s.head, s.depth)),
            "off the planes": mean(lambda s: planarity(s.depth, s.surfaces)),
            "off the target": mean(lambda s: distance_after_alignment(s.depth, truth)),
            "head off the target": mean(lambda s: distance_after_alignment(s.head, truth)),
            "AbsRel to the target": mean(lambda s: abs_rel_after_alignment(s.depth, truth, NEAR, FAR)),
            "branches differ": mean(lambda s: s.consistency),
            "prior's loss": mean(lambda s: s.prior),
        }
        if group.captions:
            cells["main object"] = mean(lambda s: fidelity(s.objects, *shown)[0])
            cells["objects found"] = mean(lambda s: fidelity(s.objects, *shown)[1])
        return cells

    lines = [
        f"## {group.title}",
        "",
        f"{count} pictures per row, {group.steps} steps of {group.sampler}, {group.scheduler}, CFG "
        f"{group.cfg:g}; dFID of {group.side} x {group.side} cells.",
        "",
    ]
    all_rows = {
        name: figures(seen)
        | {"depth moved": moved(seen, baseline)}
        | ({"s/image": seconds[name]} if name in seconds else {})
        for name, seen in rows.items()
    } | {name: figures(seen) for name, seen in judges.renders(group.seeds, count).items()}
    columns = list(all_rows[NONE])
    cells = {
        name: [
            cell_text(of_row.get(column, ""), plain=name == NONE or name not in group.rows)
            for column in columns
        ]
        for name, of_row in all_rows.items()
    }
    lines += markdown.table(columns, cells)
    missing = [name for name in group.rows if name not in rows]
    if missing:
        lines += ["", f"Not drawn: {'; '.join(missing)}."]
    return [*lines, ""]


def moved(seen: Seen, baseline: Seen) -> float:
    """Mean absolute difference of the judge's depth from the baseline's at the same seeds."""
    return (seen.depth - baseline.depth).abs().mean().item()
