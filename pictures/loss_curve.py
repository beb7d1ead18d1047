"""The loss curve of a training, for its report and for the node while it trains."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from .captions import FAINT, GRID, PAPER, font, ticks

CURVE = "#e8a14a"
SMALL = 14  # the size of letters
MOST_POINTS = 50

# A rectangle (left, top, right, bottom), in pixels.
Box = tuple[float, float, float, float]


def draw_loss_curve(
    draw: ImageDraw.ImageDraw, box: Box, losses: Sequence[float], name: str, kept_at: int | None = None
) -> None:
    """The losses of all steps, averaged over short stretches, on an axis from 0 up.

    name: of the loss, above the plot. kept_at: the step whose state was kept, marked by a line.
    """
    left, top, right, bottom = box
    steps = max(1, len(losses))
    curve = stretch_means(losses)
    highest = highest_shown([value for _, value in curve])
    draw.rectangle(box, outline=GRID)
    draw.text((left, top - 20), name, FAINT, font(SMALL))
    for value in ticks(0, highest):
        y = bottom - (bottom - top) * value / highest
        draw.line([(left, y), (right, y)], GRID)
        draw.text((left - 6, y), f"{value:g}", FAINT, font(SMALL), anchor="rm")
    for value in ticks(0, steps):
        x = left + (right - left) * value / steps
        draw.text((x, bottom + 4), f"{value:g}", FAINT, font(SMALL), anchor="ma")
    draw.text(((left + right) / 2, bottom + 20), "steps", FAINT, font(SMALL), anchor="ma")
    if kept_at is not None:
        kept = left + (right - left) * kept_at / steps
        draw.line([(kept, top), (kept, bottom)], FAINT)
    points = [
        (left + (right - left) * step / steps, bottom - (bottom - top) * min(value, highest) / highest)
        for step, value in curve
    ]
    if len(points) > 1:
        draw.line(points, CURVE, 2)


def stretch_means(losses: Sequence[float]) -> list[tuple[float, float]]:
    """(step, loss): the middle and the mean of up to MOST_POINTS stretches of equal length."""
    length = max(1, len(losses) // MOST_POINTS)
    stretches = [losses[i : i + length] for i in range(0, len(losses), length)]
    return [(i * length + len(part) / 2, sum(part) / len(part)) for i, part in enumerate(stretches)]


def highest_shown(values: Sequence[float]) -> float:
    """The top of the axis, a little above the values; those of the first twentieth may exceed it."""
    return max(values[len(values) // 20 :], default=1.0) * 1.05 or 1.0


def loss_preview(losses: Sequence[float], name: str) -> Image.Image:
    """The curve alone."""
    image = Image.new("RGB", (480, 280), PAPER)
    draw_loss_curve(ImageDraw.Draw(image), (56, 36, 464, 236), losses, name)
    return image
