"""The plot of attention_spectrum.py: one column per patch size, spectra above, the excess inside below."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..guidance.attention_spectrum import Spectrum
from .captions import FAINT, GRID, INK, PAPER, font, pixels, ticks, to_bytes
from .colour_map import COLOUR_MAPS, colours

WIDTH = 1200
LEFT, TOP, GAP, SPECTRUM_HEIGHT, EXCESS_HEIGHT, LINE = 80, 84, 24, 300, 180, 26
SCALE = 2  # drawn larger, then reduced: Pillow does not smooth lines
FONT, SMALL_FONT = 17 * SCALE, 14 * SCALE
DARKEST_CURVE, LIGHTEST_CURVE = 0.45, 0.8  # in the colour map


class Panel(NamedTuple):
    """A rectangle (left, top, right, bottom), in pixels, and the values at its sides."""

    box: tuple[float, float, float, float]
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies, in pixels."""
        left, top, right, bottom = self.box
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return left + across * (right - left), bottom - up * (bottom - top)


def plot(spectra: Sequence[Spectrum], notes: Sequence[str]) -> Tensor:
    """The spectra of all patch sizes, and lines of text below them: (H, WIDTH, 3) in [0, 1].

    Without ring 0: the mean brightness would leave no room for the rest.
    """
    psis = list(spectra[0].inside)
    colour_of = dict(zip(psis, curve_colours(len(psis)), strict=True))
    curves = [curve for s in spectra for curve in (s.everywhere, *s.inside.values())]
    magnitude = limits(value for curve in curves for value in curve.log_magnitude[1:])
    more = limits([0.0, *(value for s in spectra for psi in psis for value in percent_more(s, psi))])
    middle = TOP + SPECTRUM_HEIGHT + GAP
    bottom = middle + EXCESS_HEIGHT
    image = Image.new("RGB", (WIDTH * SCALE, (bottom + 60 + LINE * len(notes)) * SCALE), PAPER)
    draw = ImageDraw.Draw(image)
    legend(draw, {"all patches": INK} | {f"inside, attention > {psi:g}": colour_of[psi] for psi in psis})
    width = (WIDTH - LEFT - GAP) / len(spectra) - GAP
    for column, s in enumerate(spectra):
        left = LEFT + column * (width + GAP)
        above = panel((left, TOP, left + width, TOP + SPECTRUM_HEIGHT), magnitude)
        below = panel((left, middle, left + width, bottom), more)
        frame(draw, above, "log10 magnitude" if column == 0 else "")
        frame(draw, below, "more inside, %" if column == 0 else "")
        counts = " and ".join(str(s.inside[psi].patches) for psi in psis)
        text(draw, left, TOP - 24, f"{s.size} px: {s.everywhere.patches} patches, {counts} inside", INK)
        for value in ticks(*below.x):
            text(draw, below.at(value, 0)[0] / SCALE, bottom + 4, f"{value:g}", FAINT, "ma")
        text(draw, left + width / 2, bottom + 22, "cycles per pixel", FAINT, "ma")
        draw.line([below.at(below.x[0], 0), below.at(below.x[1], 0)], INK, 2 * SCALE)
        line(draw, above, s.frequencies[1:], s.everywhere.log_magnitude[1:], INK)
        for psi, colour in colour_of.items():
            line(draw, above, s.frequencies[1:], s.inside[psi].log_magnitude[1:], colour)
            line(draw, below, s.frequencies[1:], percent_more(s, psi), colour)
    for number, note in enumerate(notes):
        text(draw, LEFT, bottom + 52 + LINE * number, note, INK)
    return pixels(image.resize((WIDTH, image.height // SCALE), Image.Resampling.LANCZOS))


def percent_more(spectrum: Spectrum, psi: float) -> list[float]:
    """By how many percent the magnitude inside exceeds that of all patches, ring by ring, without ring 0."""
    return [100 * (10**excess - 1) for excess in spectrum.excess(psi)[1:]]


def curve_colours(count: int) -> list[tuple[int, ...]]:
    """Colours that differ in lightness too."""
    places = torch.linspace(DARKEST_CURVE, LIGHTEST_CURVE, count)
    return [tuple(colour) for colour in to_bytes(colours(places, COLOUR_MAPS["ember"])[None])[0].tolist()]


def limits(values: Iterable[float]) -> tuple[float, float]:
    """The range of the finite values, with a margin."""
    found = [value for value in values if not math.isnan(value)]
    room = 0.06 * (max(found) - min(found)) or 1.0
    return min(found) - room, max(found) + room


def panel(box: tuple[float, float, float, float], y: tuple[float, float]) -> Panel:
    """A panel over all frequencies, its box in pixels of the finished plot."""
    left, top, right, bottom = (side * SCALE for side in box)
    return Panel((left, top, right, bottom), (0.0, 0.5), y)


def frame(draw: ImageDraw.ImageDraw, p: Panel, meaning: str) -> None:
    """Lines at round values; with a meaning, also the numbers and what they are."""
    left, top, right, bottom = p.box
    draw.rectangle(p.box, outline=GRID, width=SCALE)
    for value in ticks(*p.y):
        y = p.at(0, value)[1]
        draw.line([(left, y), (right, y)], GRID, SCALE)
        if meaning:
            text(draw, left / SCALE - 6, y / SCALE, f"{value:g}", FAINT, "rm")
    for value in ticks(*p.x):
        x = p.at(value, 0)[0]
        draw.line([(x, top), (x, bottom)], GRID, SCALE)
    if meaning:
        corner = (left + 10 * SCALE, top + 8 * SCALE)
        draw.rectangle(draw.textbbox(corner, meaning, font(SMALL_FONT)), fill=PAPER)
        draw.text(corner, meaning, FAINT, font(SMALL_FONT))


def line(
    draw: ImageDraw.ImageDraw,
    p: Panel,
    x: Sequence[float],
    y: Sequence[float],
    colour: str | tuple[int, ...],
) -> None:
    """A curve with a dot at each point; nothing where it is not a number."""
    points = [p.at(*point) for point in zip(x, y, strict=True) if not math.isnan(point[1])]
    draw.line(points, colour, 2 * SCALE, joint="curve")
    radius = 3 * SCALE
    for x_dot, y_dot in points:
        draw.ellipse((x_dot - radius, y_dot - radius, x_dot + radius, y_dot + radius), colour)


def legend(draw: ImageDraw.ImageDraw, entries: dict[str, str | tuple[int, ...]]) -> None:
    """The legend, in a row above the panels."""
    x: float = LEFT
    for name, colour in entries.items():
        draw.line([(x * SCALE, 28 * SCALE), ((x + 34) * SCALE, 28 * SCALE)], colour, 4 * SCALE)
        text(draw, x + 44, 28, name, INK, "lm")
        x += 84 + font(FONT).getlength(name) / SCALE


def text(
    draw: ImageDraw.ImageDraw, x: float, y: float, content: str, colour: str, anchor: str = "la"
) -> None:
    """Text at a point, in pixels of the finished plot; faint text is small."""
    size = SMALL_FONT if colour == FAINT else FONT
    draw.text((x * SCALE, y * SCALE), content, colour, font(size), anchor)
