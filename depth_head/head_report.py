"""The report of a head's training: loss, figures by noise level, estimates of held-out images, labels."""

import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..pictures.captions import FAINT, INK, PAPER, font, pixels, to_bytes
from ..pictures.loss_curve import SMALL, draw_loss_curve
from .training import CHECKED_TIMES, TrainingResult

WIDTH, MARGIN, LINE = 1200, 24, 26
PLOT_WIDTH, PLOT_HEIGHT = 560, 300
FONT = 17  # the size of letters
LOSS = "L1 loss, mean of the branches"


def draw_head_report(result: TrainingResult, pictures: Tensor, labels: Tensor, heading: str) -> Tensor:
    """(H, WIDTH, 3) in [0, 1]. pictures (len(shown), H, W, 3), labels (len(shown), 1, h, w)."""
    rows = [
        [picture, *(depth.expand(3, -1, -1).movedim(0, -1) for depth in (label, *estimates[:, None]))]
        for picture, label, estimates in zip(pictures, labels, result.estimates, strict=True)
    ]
    columns = len(CHECKED_TIMES) + 2
    width = (WIDTH - MARGIN) // columns - MARGIN // 2
    height = round(width * pictures.shape[1] / pictures.shape[2])
    top = MARGIN + LINE + PLOT_HEIGHT + 4 * LINE
    image = Image.new("RGB", (WIDTH, top + len(rows) * (height + MARGIN // 2) + MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN), heading, INK, font(FONT))
    plot = (MARGIN + 40, MARGIN + 2 * LINE, MARGIN + PLOT_WIDTH, MARGIN + PLOT_HEIGHT)
    draw_loss_curve(draw, plot, result.losses, LOSS, result.best_step)
    write_figures(draw, MARGIN + PLOT_WIDTH + 2 * MARGIN, MARGIN + 2 * LINE, result)
    captions = ["held-out image", "label", *(f"estimate, t = {time}" for time in CHECKED_TIMES)]
    for column, caption in enumerate(captions if rows else []):
        draw.text((MARGIN + column * (width + MARGIN // 2), top - LINE), caption, FAINT, font(SMALL))
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            place = (MARGIN + column * (width + MARGIN // 2), top + number * (height + MARGIN // 2))
            image.paste(thumbnail(cell, width, height), place)
    return pixels(image)


def thumbnail(picture: Tensor, width: int, height: int) -> Image.Image:
    """(H, W, 3) in [0, 1] at another size."""
    small = F.interpolate(picture.movedim(-1, 0)[None].float().cpu(), (height, width), mode="area")
    return Image.fromarray(to_bytes(small[0].movedim(0, -1).clamp(0, 1)))


def write_figures(draw: ImageDraw.ImageDraw, left: float, top: float, result: TrainingResult) -> None:
    """A table: noise levels down, figures of the strong and the weak branch across, if there are any."""
    names = ("AbsRel", "RMSE", "delta1")
    stops = [left + 110 + 72 * i for i in range(6)]
    if not result.figures:
        draw.text((left, top), "Interrupted before the head was measured.", INK, font(FONT))
        return
    for branch, stop in zip(result.figures, stops[::3], strict=False):
        draw.text((stop, top), branch, INK, font(FONT))
    for stop, name in zip(stops, names * len(result.figures), strict=False):
        draw.text((stop, top + LINE), name, FAINT, font(SMALL))
    for line, time in enumerate(CHECKED_TIMES):
        y = top + (line + 2) * LINE
        draw.text((left, y), f"t = {time}", INK, font(FONT))
        figures = [by_time[time] for by_time in result.figures.values()]
        values = [f"{value:.3f}" for m in figures for value in (m.abs_rel, m.rmse, m.delta1)]
        for stop, value in zip(stops, values, strict=False):
            draw.text((stop, y), value, INK, font(FONT))
    notes = (
        f"Held-out images: {len(result.held_out)}.",
        "AbsRel, RMSE: lower is better; delta1: higher.",
        "The line in the plot: the state that was kept.",
    )
    for line, note in enumerate(notes):
        draw.text((left, top + (len(CHECKED_TIMES) + 3 + line) * LINE), note, FAINT, font(SMALL))
