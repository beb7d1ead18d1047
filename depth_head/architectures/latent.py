"""Depth from the clean latent itself, without the model's features.

While a model denoises, it states at every step what the finished latent will be: its clean estimate, x0. A
small U-Net reads the depth of that, so the gradient of a loss with respect to x0 does not run through the
model. Its first layer takes any number of channels, so there is one for every VAE.

An estimate is blurred and faulty where there is much noise, so the network is told the time.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from .limits import require_taps, require_widths
from .pixel_mlp import TIME_CHANNELS, embed_time
from .resize import resize
from .running_norm import RunningNorm

ESTIMATE = "x0"
GROUPS = 8


class LatentDepth(nn.Module):
    """See architectures/__init__.py for what goes in and comes out.

    channels: of the latent. widths: channels at its full size, at a half, a quarter, ... of it, multiples of
    GROUPS. The only feature is the clean latent, in the space in which samplers work; there is no weak
    branch. Raises ValueError beyond limits.py.
    """

    def __init__(self, channels: int, widths: Sequence[int] = (32, 48, 64, 64)) -> None:
        super().__init__()
        require_taps({ESTIMATE: channels})
        require_widths(widths)
        if any(width % GROUPS for width in widths):
            raise ValueError(f"widths must be multiples of {GROUPS}")
        self.taps = {ESTIMATE: channels}
        self.branch_taps = {"strong": (ESTIMATE,)}
        self.widths = tuple(widths)
        self.standardise = RunningNorm(channels, affine=False)
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(TimedResidual(width) for width in widths)
        self.halve = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.whole = nn.Linear(widths[-1], widths[-1])
        self.narrow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        self.up = nn.ModuleList(TimedResidual(width) for width in widths[:-1])
        self.norm = nn.GroupNorm(GROUPS, widths[0])
        self.depth = nn.Conv2d(widths[0], 1, 3, padding=1)

    @property
    def config(self) -> dict[str, Any]:
        """What `build` needs."""
        return {"channels": self.taps[ESTIMATE], "widths": list(self.widths)}

    def forward(
        self, features: Mapping[str, Tensor], time: Tensor, size: Sequence[int], branch: str = "strong"
    ) -> Tensor:
        """Depth of one branch."""
        return self.branches(features, time, size, (branch,))[0]

    def branches(
        self, features: Mapping[str, Tensor], time: Tensor, size: Sequence[int], branches: Sequence[str]
    ) -> list[Tensor]:
        """The depth of the only branch, as often as `branches` names it."""
        precision = self.first.weight.dtype
        embedding = embed_time(time).to(precision)
        h = self.first(self.standardise(features[ESTIMATE].to(precision)))
        halves, narrows = (cast("list[nn.Module]", list(m)) for m in (self.halve, self.narrow))
        skips = []
        for level, residual in enumerate(self.down):
            h = residual(halves[level - 1](h) if level else h, embedding)
            skips.append(h)
        h = h + self.whole(F.silu(h.mean(dim=(2, 3))))[:, :, None, None]
        for level in reversed(range(len(self.up))):
            # A 1 x 1 convolution and resizing commute, so it is done where there are fewer pixels.
            h = skips[level] + resize(narrows[level](h), skips[level].shape[-2:])
            h = self.up[level](h, embedding)
        depth = resize(self.depth(F.silu(self.norm(h))), size).sigmoid()
        return [depth for _ in branches]


class TimedResidual(nn.Module):
    """h + conv(silu(norm(conv(silu(norm(h))) + Linear(embedding))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, width), nn.GroupNorm(GROUPS, width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.time = nn.Linear(TIME_CHANNELS, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """(B, width, h, w), (B, TIME_CHANNELS) -> (B, width, h, w)."""
        inner = self.conv1(F.silu(self.norm1(h))) + self.time(embedding)[:, :, None, None]
        return h + self.conv2(F.silu(self.norm2(inner)))
