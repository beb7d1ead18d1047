"""The caption above a picture and the colour bar with numbers below it."""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .colour_map import ColourMap, colours

PAPER, INK, FAINT, GRID = "#161616", "#e4e4e4", "#9a9a9a", "#333333"
SMALLEST_FONT = 11
CHARACTERS_ACROSS = 34  # of the font's size, not of its letters, which are half as wide
MOST_TICKS = 6


class ColourBar(NamedTuple):
    """The legend of a colour map that reaches from `low` to `high`; `meaning` says what the numbers are."""

    colour_map: ColourMap
    low: float
    high: float
    meaning: str


def captioned(pictures: Tensor, captions: Sequence[str], bar: ColourBar | None = None) -> Tensor:
    """Pictures (N, H, W, 3) in [0, 1] with a caption each, and the bar below all: (N, taller H, W, 3).

    The added height is a multiple of 8, so video encoders still accept the pictures.
    """
    _, _, width, _ = pictures.shape
    below = [] if bar is None else [colour_bar(bar, width).expand(len(pictures), -1, -1, -1)]
    above = torch.stack([caption(text, width) for text in captions])
    return torch.cat([above.to(pictures), pictures, *(strip.to(pictures) for strip in below)], dim=1)


def caption(text: str, width: int) -> Tensor:
    """A line of text on a strip (h, width, 3); smaller, then cut, where it is too long."""
    size = font_size(width)
    image, draw = strip(width, 1.6 * size)
    room = width - size
    while size > SMALLEST_FONT and font(size).getlength(text) > room:
        size -= 1
    if font(size).getlength(text) > room:
        while text and font(size).getlength(text + "...") > room:
            text = text[:-1]
        text += "..."
    draw.text((font_size(width) / 2, image.height / 2), text, INK, font(size), anchor="lm")
    return pixels(image)


def colour_bar(bar: ColourBar, width: int) -> Tensor:
    """The colours from bar.low to bar.high with numbers, and what they mean, on a strip (h, width, 3)."""
    size = font_size(width)
    image, draw = strip(width, 4.6 * size)
    left = min(size, (width - 1) // 2)
    right = width - left
    gradient = colours(torch.linspace(0, 1, right - left), bar.colour_map).expand(size, -1, -1)
    image.paste(Image.fromarray(to_bytes(gradient)), (left, size // 2))
    for value in ticks(bar.low, bar.high):
        x = left + (right - left - 1) * (value - bar.low) / (bar.high - bar.low)
        draw.line([(x, 1.5 * size), (x, 1.8 * size)], INK, max(1, size // 12))
        draw.text((x, 1.9 * size), f"{value:g}", INK, font(size), anchor="ma")
    draw.text((width / 2, 3 * size), bar.meaning, INK, font(size), anchor="ma")
    return pixels(image)


def ticks(low: float, high: float) -> list[float]:
    """The multiples of 1, 2 or 5 times a power of 10 from low to high; MOST_TICKS or fewer."""
    power = 10.0 ** math.floor(math.log10(high - low))
    steps = (power * factor for factor in (0.1, 0.2, 0.5, 1, 2, 5))
    step = next(step for step in steps if (high - low) / step < MOST_TICKS)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * i, 10) for i in range(first, last + 1)]


def font_size(width: int) -> int:
    """The size of letters, in pixels, for a picture of this width."""
    return max(SMALLEST_FONT, width // CHARACTERS_ACROSS)


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow, so every machine has it: Latin letters only."""
    return ImageFont.load_default(size)


def strip(width: int, height: float) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Empty paper, its height rounded up to a multiple of 8."""
    image = Image.new("RGB", (width, math.ceil(height / 8) * 8), PAPER)
    return image, ImageDraw.Draw(image)


def to_bytes(picture: Tensor) -> np.ndarray:
    """(H, W, 3) in [0, 1] as Pillow takes it."""
    return (picture * 255).round().to(torch.uint8).cpu().numpy()


def pixels(image: Image.Image) -> Tensor:
    """A Pillow image as (H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.float32)) / 255
