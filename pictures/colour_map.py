"""Colour maps that are perceptually uniform, as paths through OKLCh.

OKLab (Ottosson 2020, https://bottosson.github.io/posts/oklab/) is built so that equal steps in L look equally
bright. A map here is the path

    L(t) = L_0 + (L_1 - L_0) t        h(t) = h_0 + (h_1 - h_0) t        C(t) = C_max sin(pi t),   t in [0, 1]

so lightness alone tells the value, in grey print and for colour-blind readers too. C_max is the largest
chroma with which the whole path lies inside the sRGB gamut, so nothing is clipped. Paths begin at L = 0.16,
where colours begin to differ visibly from black.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class ColourMap(NamedTuple):
    """A path through OKLCh: lightness and hue (degrees) at both ends, and the largest chroma."""

    lightness: tuple[float, float]
    hue: tuple[float, float]
    chroma: float


COLOUR_MAPS = {
    "ember": ColourMap((0.16, 0.97), (-75.0, 95.0), 0.205),
    "lagoon": ColourMap((0.16, 0.97), (290.0, 140.0), 0.097),
    "grey": ColourMap((0.16, 1.0), (0.0, 0.0), 0.0),
}


def colours(values: Tensor, colour_map: ColourMap) -> Tensor:
    """Values (...) in [0, 1], clamped to it, as display colours (..., 3): sRGB in [0, 1]."""
    t = values.clamp(0, 1)
    lightness = torch.lerp(*_ends(colour_map.lightness, t), t)
    hue = torch.deg2rad(torch.lerp(*_ends(colour_map.hue, t), t))
    chroma = colour_map.chroma * torch.sin(math.pi * t)
    return oklab_to_srgb(torch.stack([lightness, chroma * hue.cos(), chroma * hue.sin()], dim=-1)).clamp(0, 1)


def _ends(ends: tuple[float, float], like: Tensor) -> tuple[Tensor, Tensor]:
    first, last = torch.tensor(ends, dtype=like.dtype, device=like.device)
    return first, last


def oklab_to_srgb(lab: Tensor) -> Tensor:
    """OKLab (..., 3) to sRGB (..., 3) with its transfer curve; outside [0, 1] where sRGB lacks the colour."""
    cone_root = lab @ lab.new_tensor(
        [
            [1.0, 1.0, 1.0],
            [0.3963377774, -0.1055613458, -0.0894841775],
            [0.2158037573, -0.0638541728, -1.2914855480],
        ]
    )
    linear = cone_root**3 @ lab.new_tensor(
        [
            [4.0767416621, -1.2684380046, -0.0041960863],
            [-3.3077115913, 2.6097574011, -0.7034186147],
            [0.2309699292, -0.3413193965, 1.7076147010],
        ]
    )
    return torch.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    )
