"""The picture that tells how the training of a depth prior went: its loss, and depth maps it makes up."""

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..pictures.captions import INK, captioned, pixels

WIDTH, HEIGHT, MARGIN = 768, 256, 12
MOST_POINTS = 200


def report(losses: list[float], maps: Tensor) -> Tensor:
    """losses: of every step; maps (N, 1, s, s) in [0, 1]. Returns (1, H, WIDTH, 3) in [0, 1]."""
    smooth = smoothed(losses)
    # The first losses are near 1, that of predicting nothing, whatever there is to learn.
    top = max(smooth[len(smooth) // 20 :])
    curve = captioned(
        draw_curve(smooth, top)[None],
        [f"Loss after {len(losses)} steps: {smooth[-1]:.4f} (top of the curve: {top:.4f})"],
    )
    tile = WIDTH // len(maps)
    tiles = F.interpolate(maps.cpu().float(), (tile, tile), mode="nearest")
    row = torch.cat(list(tiles), dim=2).permute(1, 2, 0).expand(-1, -1, 3)
    row = F.pad(row, (0, 0, 0, WIDTH - row.shape[1]))
    below = captioned(row[None], ["Depth maps that the prior makes up from noise (near = white)"])
    return torch.cat([curve, below], dim=1)


def smoothed(losses: list[float]) -> list[float]:
    """Means of at most MOST_POINTS stretches of equal length; the last one may be shorter."""
    length = -(-len(losses) // MOST_POINTS)
    stretches = [losses[i : i + length] for i in range(0, len(losses), length)]
    return [sum(stretch) / len(stretch) for stretch in stretches]


def draw_curve(values: list[float], top: float) -> Tensor:
    """A curve from 0 to `top`, (HEIGHT, WIDTH, 3)."""
    image = Image.new("RGB", (WIDTH, HEIGHT))
    across, up = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    points = [
        (MARGIN + across * i / max(1, len(values) - 1), HEIGHT - MARGIN - up * min(value / top, 1.0))
        for i, value in enumerate(values)
    ]
    if len(points) == 1:
        points *= 2
    ImageDraw.Draw(image).line(points, INK, 2, joint="curve")
    return pixels(image)
