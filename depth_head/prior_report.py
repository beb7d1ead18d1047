"""The report of a depth prior's training: its loss, and depth maps that it draws from noise."""

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..pictures.captions import PAPER, captioned, pixels
from ..pictures.loss_curve import draw_loss_curve

WIDTH, HEIGHT = 768, 320
PLOT = (56, 36, 752, 276)
LOSS = "mean squared error of the predicted noise"
LAST_STEPS = 100


def draw_prior_report(losses: list[float], maps: Tensor) -> Tensor:
    """losses: of every step; maps (N, 1, s, s) in [0, 1], N may be 0. Returns (1, H, WIDTH, 3) in [0, 1]."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw_loss_curve(ImageDraw.Draw(image), PLOT, losses, LOSS)
    heading = f"Loss after {len(losses)} steps: {last_loss(losses):.4f}"
    curve = captioned(pixels(image)[None], [heading])
    if not len(maps):
        return curve
    tile = WIDTH // len(maps)
    tiles = F.interpolate(maps.cpu().float(), (tile, tile), mode="nearest")
    row = torch.cat(list(tiles), dim=2).permute(1, 2, 0).expand(-1, -1, 3)
    row = F.pad(row, (0, 0, 0, WIDTH - row.shape[1]))
    below = captioned(row[None], ["Depth maps drawn by the prior from noise (near = white)"])
    return torch.cat([curve, below], dim=1)


def last_loss(losses: list[float]) -> float:
    """The mean loss of the last LAST_STEPS steps."""
    last = losses[-LAST_STEPS:]
    return sum(last) / len(last)
