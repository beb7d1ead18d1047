"""The tables of sag_experiment.py: every row against the row without guidance, on the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from . import markdown
from .dag_figures import fidelity
from .paired_bootstrap import LEVEL, Bootstrapped, bootstrap, cell, mean, resamples
from .sag_rows import NONE, Seen
from .set_figures import diversity_of, frechet_to, inside_manifold, nearest

RENDERS = "renders"

LEGEND = (
    f"In brackets: the change from the row without guidance and its {LEVEL:.0%} interval, from a bootstrap "
    "over the seeds; bold where it excludes 0. The judges were trained on renders alone.",
    "",
    "- Frechet: distance of the recogniser's features to those of renders after the autoencoder. It falls "
    "with the number of pictures: compare rows of one table only. nearest render: mean distance of a "
    "picture's features to the nearest render's, a figure of each picture, so it is certain sooner.",
    "- precision, recall: share of the pictures in the manifold of renders, and of renders in that of "
    "pictures (3 nearest neighbours). The interval of recall is over the renders.",
    "- solids seen: kinds of solids that the recogniser sees in a picture (logit above 0). main object, "
    "objects found: of those that the prompt names. in the prompt: share of the solids seen that it names. "
    "class in the picture: share of the pictures in which it sees the class that their row is guided to.",
    "- dFID (8 x 8 cells): Frechet distance of the depth judge's maps as 64 area averages, not the papers' "
    "features; of means: the part from the mean map. diversity: mean distance of two pictures' features. "
    "detail: RMS of the Laplacian of luminance; sharp edges and noise raise it.",
    "- Effective CFG: the scale of plain CFG that goes as far along its own direction (GA-Eval, "
    "arXiv:2602.22570). CPU s: median seconds of one thread to sample a picture, in batches.",
)


def tables(
    rows: Mapping[str, Seen],
    renders: Seen,
    reference: Seen,
    shown: tuple[Tensor, Tensor] | None,
    classes: Tensor | None = None,
) -> list[str]:
    """The lines of a group's two tables.

    rows: by name, with NONE; renders: as many renders; reference: what every distance is measured to;
    shown: the solids of the prompts' scenes and the main one, None without captions; classes: the class of
    each picture, (N,), None without.
    """
    figures = {name: of_row(seen, reference, shown) for name, seen in rows.items()}
    if classes is not None:
        for name, seen in rows.items():
            hits = (seen["objects"].gather(1, classes[:, None]) > 0).float()
            figures[name]["class in the picture"] = bootstrap(mean, hits, resamples(len(hits)))
    figures[RENDERS] = of_row(renders, reference, shown)
    lines: list[str] = []
    for columns in (quality_columns(shown is not None, classes is not None), OTHER_COLUMNS):
        cells = {}
        for name, found in figures.items():
            plain = name in (NONE, RENDERS)
            cells[name] = [
                cell(found.get(column), None if plain else figures[NONE].get(column)) for column in columns
            ]
        lines += [*markdown.table(columns, cells), ""]
    scales = {name: mean(seen["scale"]) for name, seen in rows.items() if not seen["scale"].isnan().all()}
    costs = ", ".join(f"{name} {seen['seconds'].median():.2f}" for name, seen in rows.items())
    lines += [f"CPU s: {costs}.", ""]
    if scales:
        lines += ["Effective CFG: " + ", ".join(f"{name} {w:.2f}" for name, w in scales.items()) + ".", ""]
    return lines


OTHER_COLUMNS = ("precision", "recall", "dFID (8 x 8 cells)", "of means", "diversity", "detail")


def quality_columns(captions: bool, classes: bool) -> tuple[str, ...]:
    """The columns of a group's first table."""
    objects = ("main object", "objects found", "in the prompt") if captions else ("solids seen",)
    return ("Frechet", "nearest render", *objects, *(("class in the picture",) if classes else ()))


def of_row(seen: Seen, reference: Seen, shown: tuple[Tensor, Tensor] | None) -> dict[str, Bootstrapped]:
    """The figures of a row, by column."""
    features, others = seen["features"], reference["features"]
    drawn = resamples(len(features))
    found = (seen["objects"] > 0).float()
    image, depth = frechet_to(others), frechet_to(reference["depth"])

    def distance(terms: Callable[[Tensor], tuple[float, float]]) -> Callable[[Tensor], float]:
        return lambda x: sum(terms(x))

    figures = {
        "Frechet": bootstrap(distance(image), features, drawn),
        "nearest render": bootstrap(mean, nearest(features, others), drawn),
        "solids seen": bootstrap(mean, found.sum(1), drawn),
        "precision": bootstrap(mean, inside_manifold(features, others).float(), drawn),
        "recall": bootstrap(mean, inside_manifold(others, features).float(), resamples(len(others))),
        "dFID (8 x 8 cells)": bootstrap(distance(depth), seen["depth"], drawn),
        "of means": bootstrap(lambda x: depth(x).means, seen["depth"], drawn),
        "diversity": bootstrap(diversity_of(features), torch.arange(len(features)), drawn),
        "detail": bootstrap(mean, seen["detail"], drawn),
    }
    if shown is not None:
        present, main = shown
        main_found, share = fidelity(seen["objects"].sigmoid(), present, main)
        figures["main object"] = bootstrap(mean, main_found, drawn)
        figures["objects found"] = bootstrap(mean, share, drawn)
        counts = torch.stack([(found * present).sum(1), found.sum(1)], 1)
        figures["in the prompt"] = bootstrap(share_of_sums, counts, drawn)
    return figures


def share_of_sums(counts: Tensor) -> float:
    """Sum of the first column of (N, 2) over that of the second."""
    part, whole = counts.double().sum(0).tolist()
    return part / max(whole, 1)
