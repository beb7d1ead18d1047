"""The report of a classifier head's training: the loss, and the accuracy at each noise level."""

from PIL import Image, ImageDraw
from torch import Tensor

from ..pictures.captions import FAINT, INK, PAPER, font, pixels
from ..pictures.loss_curve import SMALL, draw_loss_curve
from .training import ClassifierResult

WIDTH, HEIGHT, MARGIN, LINE = 960, 400, 24, 26
PLOT_WIDTH = 560
FONT = 17  # the size of letters
LOSS = "cross-entropy"


def draw_classifier_report(result: ClassifierResult, classes: int, heading: str) -> Tensor:
    """(HEIGHT, WIDTH, 3) in [0, 1]. classes: their number, for the accuracy of guessing."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN), heading, INK, font(FONT))
    plot = (MARGIN + 40, MARGIN + 3 * LINE, MARGIN + PLOT_WIDTH, HEIGHT - 2 * LINE - MARGIN)
    draw_loss_curve(draw, plot, result.losses, LOSS, result.best_step)
    left, top = MARGIN + PLOT_WIDTH + 2 * MARGIN, MARGIN + 3 * LINE
    if not result.accuracy:
        draw.text((left, top), "Interrupted before it was measured.", INK, font(FONT))
        return pixels(image)
    draw.text((left, top), "accuracy", FAINT, font(SMALL))
    for line, (time, accuracy) in enumerate(result.accuracy.items(), 1):
        draw.text((left, top + line * LINE), f"t = {time}", INK, font(FONT))
        draw.text((left + 120, top + line * LINE), f"{accuracy:.1%}", INK, font(FONT))
    notes = (
        f"Held-out images: {result.held_out}.",
        f"Guessing reaches {1 / classes:.1%}.",
        "The line in the plot: the state that was kept.",
    )
    for line, note in enumerate(notes, len(result.accuracy) + 2):
        draw.text((left, top + line * LINE), note, FAINT, font(SMALL))
    return pixels(image)
