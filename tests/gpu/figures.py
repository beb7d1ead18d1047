"""Figures of the pictures that a checkpoint draws without and with guidance."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

import numpy as np
from PIL import Image

from inner_guidance.tests.gpu.checkpoint import PLAIN
from inner_guidance.tests.gpu.comparison import difference

Shown = Mapping[str, Image.Image]


def figures_table(rows: Mapping[str, Sequence[Shown]]) -> str:
    """A Markdown table of means over the seeds. rows: as drawing() shows them, PLAIN among them."""
    return "\n".join(figure_lines(rows))


def figure_lines(rows: Mapping[str, Sequence[Shown]]) -> Iterator[str]:
    """The lines of figures_table."""
    target = rows[PLAIN][0].get("depth")
    yield from (
        "| row | change of the picture | depth model and head agree | depth is that of the first picture |",
        "|---|---|---|---|",
    )
    for row, shown in rows.items():
        changes = [
            difference(one["picture"], plain["picture"])
            for one, plain in zip(shown, rows[PLAIN], strict=True)
        ]
        agree = [likeness(one["depth"], one["read"]) for one in shown if "read" in one]
        # The first picture is its own target.
        locked = [likeness(one["depth"], target) for one in shown[1:] if target is not None]
        yield f"| {row} | {mean(changes):.3f} | {told(agree)} | {told(locked)} |"


def told(values: Sequence[float]) -> str:
    """The mean, or nothing."""
    return f"{mean(values):.2f}" if values else ""


def likeness(one: Image.Image, other: Image.Image) -> float:
    """Correlation of two depth pictures; 0 if one of them is flat."""
    a, b = (np.asarray(picture.convert("L").resize((64, 64)), float).ravel() for picture in (one, other))
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else 0.0
