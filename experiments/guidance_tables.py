"""Tables of pictures with and without depth guidance: each row against the one without."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .depth_figures import (
    Change,
    abs_rel_after_alignment,
    change_of_distance,
    change_of_mean,
    depth_features,
    distance_after_alignment,
    planarity,
)
from .guided_pictures import BATCH, NONE, TURNS, Group
from .picture_judges import BENT, Judges, Seen

RESAMPLES = 100

LEGEND = (
    "In brackets: change from the row without guidance at the same seeds, ± its standard deviation "
    f"(Frechet distances: {RESAMPLES} resamplings of pictures and reference; others: over the pictures).",
    "",
    "- dFID: Frechet distance of the judge's depth maps from those of renders of as many other scenes, "
    "after the autoencoder. Image Frechet: the same of the recogniser's features.",
    "- head and judge differ: mean difference of the depth that the UNet's head reads from the finished "
    "picture (t = 100) and the judge's, after scale and shift. Relative inverse depth, 0 to 1.",
    "- off the planes: RMS distance of the judge's depth from a plane through each of floor and walls.",
    "- off the target, AbsRel to the target: the judge's depth against the scene whose depth is the "
    "target, after scale and shift; head off the target: the same of the head's.",
    "- branches differ: mean |d_S - d_W|, what DCG lowers; prior's loss: what DPG lowers. Both of the "
    "finished picture.",
    "- depth moved: mean difference of the judge's depth from that without guidance. s/image, where given: "
    f"sampling a batch of {BATCH}, median of {TURNS} turns of all rows after one another.",
    f"- renders: of the scenes themselves, after the autoencoder. bent: by {BENT:.0%} of their "
    "side, which shows how the figures take broken geometry.",
)

Cell = Change | float | str


def table(judges: Judges, group: Group, seconds: Mapping[str, float]) -> list[str]:
    """A group's table, of the rows that are complete. seconds: what a picture takes in a row, where known."""
    from inner_guidance.demo.measures import frechet_distance
    from inner_guidance.demo.scenes import FAR, NEAR

    count = group.samples
    found = {name: judges.seen(group, name) for name in group.rows}
    rows = {name: known for name, known in found.items() if known is not None}
    if NONE not in rows:
        return []
    reference, truth, shown = judges.reference(count), judges.truth(count), judges.shown(count)
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
        f"{count} pictures a row, {group.steps} steps of {group.sampler}, {group.scheduler}, CFG "
        f"{group.cfg:g}; dFID of {group.side} x {group.side} cells.",
        "",
    ]
    all_rows = {
        name: figures(seen)
        | {"depth moved": moved(seen, baseline)}
        | ({"s/image": seconds[name]} if name in seconds else {})
        for name, seen in rows.items()
    } | {name: figures(seen) for name, seen in judges.renders(count).items()}
    columns = list(all_rows[NONE])
    lines += [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, cells in all_rows.items():
        plain = name == NONE or name not in group.rows
        lines.append(f"| {name} | {' | '.join(text(cells.get(column, ''), plain) for column in columns)} |")
    missing = [name for name in group.rows if name not in rows]
    if missing:
        lines += ["", f"Not drawn: {'; '.join(missing)}."]
    return [*lines, ""]


def moved(seen: Seen, baseline: Seen) -> float:
    """Mean absolute difference of the judge's depth from the baseline's at the same seeds."""
    return (seen.depth - baseline.depth).abs().mean().item()


def fidelity(objects: Tensor, present: Tensor, main: Tensor) -> tuple[Tensor, Tensor]:
    """Of each picture (N,): whether the main object is recognised, and the share of the objects that are.

    objects (N, kinds): probabilities; present (N, kinds): 1 for what should be there; main (N,): its kind.
    """
    found = (objects > 0.5).float()
    return found[torch.arange(len(main)), main], (found * present).sum(1) / present.sum(1)


def text(cell: Cell, plain: bool) -> str:
    """A cell; plain: without the change from the baseline."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, float):
        return f"{cell:.3f}"
    digits = 4 if abs(cell.value) < 10 else 2
    value = f"{cell.value:.{digits}f}"
    return value if plain else f"{value} ({cell.change:+.{digits}f} ± {cell.deviation:.{digits}f})"
