"""The picture of a training: loss, figures by noise level, estimates of held-out images beside labels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..pictures.captions import INK, PAPER, pixels, ticks, to_bytes
from .training import LEVELS, TrainingResult

WIDTH, MARGIN, LINE = 1200, 24, 26
PLOT_WIDTH, PLOT_HEIGHT = 560, 300
FAINT, GRID, CURVE = "#9a9a9a", "#333333", "#e8a14a"
FONT, SMALL = ImageFont.load_default(17), ImageFont.load_default(14)
SMOOTHED = 50  # parts of the curve


def report(result: TrainingResult, pictures: Tensor, labels: Tensor, heading: str) -> Tensor:
    """(H, WIDTH, 3) in [0, 1]. pictures (len(shown), H, W, 3), labels (len(shown), 1, h, w)."""
    rows = [
        [picture, *(depth.expand(3, -1, -1).movedim(0, -1) for depth in (label, *estimates[:, None]))]
        for picture, label, estimates in zip(pictures, labels, result.estimates, strict=True)
    ]
    columns = len(LEVELS) + 2
    width = (WIDTH - MARGIN) // columns - MARGIN // 2
    height = round(width * pictures.shape[1] / pictures.shape[2])
    top = MARGIN + LINE + PLOT_HEIGHT + 4 * LINE
    image = Image.new("RGB", (WIDTH, top + len(rows) * (height + MARGIN // 2) + MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN), heading, INK, FONT)
    plot_loss(draw, (MARGIN + 40, MARGIN + 2 * LINE, MARGIN + PLOT_WIDTH, MARGIN + PLOT_HEIGHT), result)
    write_figures(draw, MARGIN + PLOT_WIDTH + 2 * MARGIN, MARGIN + 2 * LINE, result)
    captions = ["held-out image", "label", *(f"estimate, t = {time}" for time in LEVELS)]
    for column, caption in enumerate(captions):
        draw.text((MARGIN + column * (width + MARGIN // 2), top - LINE), caption, FAINT, SMALL)
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            place = (MARGIN + column * (width + MARGIN // 2), top + number * (height + MARGIN // 2))
            image.paste(thumbnail(cell, width, height), place)
    return pixels(image)


def thumbnail(picture: Tensor, width: int, height: int) -> Image.Image:
    """(H, W, 3) in [0, 1] at another size."""
    small = F.interpolate(picture.movedim(-1, 0)[None].float().cpu(), (height, width), mode="area")
    return Image.fromarray(to_bytes(small[0].movedim(0, -1).clamp(0, 1)))


def plot_loss(
    draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], result: TrainingResult
) -> None:
    """The loss over the steps, averaged over short stretches, from 0 up; a line where the kept state was."""
    left, top, right, bottom = box
    steps = max(1, len(result.losses))
    curve = smoothed(result.losses)
    highest = max([value for _, value in curve], default=1.0) * 1.05 or 1.0
    draw.rectangle(box, outline=GRID)
    draw.text((left, top - 20), "L1 loss, mean of both branches", FAINT, SMALL)
    for value in ticks(0, highest):
        y = bottom - (bottom - top) * value / highest
        draw.line([(left, y), (right, y)], GRID)
        draw.text((left - 6, y), f"{value:g}", FAINT, SMALL, anchor="rm")
    for value in ticks(0, steps):
        draw.text(
            (left + (right - left) * value / steps, bottom + 4), f"{value:g}", FAINT, SMALL, anchor="ma"
        )
    draw.text(((left + right) / 2, bottom + 20), "steps", FAINT, SMALL, anchor="ma")
    kept = left + (right - left) * result.best_step / steps
    draw.line([(kept, top), (kept, bottom)], FAINT)
    points = [
        (left + (right - left) * step / steps, bottom - (bottom - top) * value / highest)
        for step, value in curve
    ]
    if len(points) > 1:
        draw.line(points, CURVE, 2)


def smoothed(losses: Sequence[float]) -> list[tuple[float, float]]:
    """(step, loss) in the middle of up to SMOOTHED stretches of equal length."""
    length = max(1, len(losses) // SMOOTHED)
    stretches = [losses[i : i + length] for i in range(0, len(losses), length)]
    return [(i * length + len(part) / 2, sum(part) / len(part)) for i, part in enumerate(stretches)]


def write_figures(draw: ImageDraw.ImageDraw, left: float, top: float, result: TrainingResult) -> None:
    """A table: noise levels down, figures of the strong and the weak branch across."""
    names = ("AbsRel", "RMSE", "delta1")
    stops = [left + 110 + 72 * i for i in range(6)]
    for branch, stop in zip(result.figures, stops[::3], strict=True):
        draw.text((stop, top), branch, INK, FONT)
    for stop, name in zip(stops, names * 2, strict=True):
        draw.text((stop, top + LINE), name, FAINT, SMALL)
    for line, time in enumerate(LEVELS):
        y = top + (line + 2) * LINE
        draw.text((left, y), f"t = {time}", INK, FONT)
        figures = [m for by_time in result.figures.values() for m in (by_time[time],)]
        values = [f"{value:.3f}" for m in figures for value in (m.abs_rel, m.rmse, m.delta1)]
        for stop, value in zip(stops, values, strict=True):
            draw.text((stop, y), value, INK, FONT)
    notes = (
        f"Held-out images: {len(result.held_out)}.",
        "AbsRel, RMSE: lower is better; delta1: higher.",
        "The line in the plot: the state that was kept.",
    )
    for line, note in enumerate(notes):
        draw.text((left, top + (len(LEVELS) + 3 + line) * LINE), note, FAINT, SMALL)


def loss_preview(losses: Sequence[float]) -> Image.Image:
    """The curve alone, for the node while it trains."""
    image = Image.new("RGB", (480, 280), PAPER)
    empty = torch.zeros(0)
    plot_loss(
        ImageDraw.Draw(image),
        (56, 36, 464, 236),
        TrainingResult(list(losses), len(losses), {}, [], [], empty, False),
    )
    return image
