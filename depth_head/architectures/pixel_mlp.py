"""The paper's depth predictor: a time-conditioned MLP on the features of one pixel.

    f_t(k)   features of decoder block k       g_t   the chosen f_t(k), resized and concatenated
    d_t      depth, MLP(g_t, t)                layer [Linear -> SiLU -> BatchNorm] + [embedding(t) -> Linear]

Two branches on the same features: strong, on several blocks, and weak, on few. They share no weights and no
gradient; training them together costs one pass of the UNet for both.

Choices that the paper leaves open: widths 128 and 32, as in its parent method (arXiv:2112.03126); a sigmoid
at the output; features standardised per channel before the first Linear. See docs/derivations.md.

The features of a transformer are its residual stream, in which a few channels are many times larger than all
others, more so in some tokens than in others (arXiv:2505.18584). So they are normalised per token first.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .limits import require_branch, require_taps, require_widths
from .resize import resize
from .running_norm import RunningNorm

TIME_CHANNELS = 64


def embed_time(time: Tensor) -> Tensor:
    """(B,) in [0, 1000) -> (B, TIME_CHANNELS): cosines and sines of falling frequency, as UNets have it."""
    half = TIME_CHANNELS // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=time.device) / half)
    angle = time.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def normalise_tokens(x: Tensor) -> Tensor:
    """(B, C, h, w), of mean 0 and variance 1 over the channels of each token."""
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)


class PixelMLP(nn.Module):
    """The interface is that of architectures/__init__.py.

    taps: name -> channels of every block that is read. strong, weak: the names that each branch reads, at
    least one. token_norm: normalise the channels of each token of a transformer (LayerNorm without
    parameters). Raises ValueError for a name that is not in taps, and beyond limits.py.
    """

    def __init__(
        self,
        taps: Mapping[str, int],
        strong: Sequence[str],
        weak: Sequence[str],
        widths: Sequence[int] = (128, 32),
        token_norm: bool = False,
    ) -> None:
        super().__init__()
        require_taps(taps)
        require_branch("strong", strong, taps)
        require_branch("weak", weak, taps)
        require_widths(widths)
        if type(token_norm) is not bool:
            raise ValueError("token_norm must be true or false")
        self.token_norm = token_norm
        self.taps = dict(taps)
        self.branch_taps = {"strong": tuple(strong), "weak": tuple(weak)}
        self.widths = tuple(widths)
        self.standardise = nn.ModuleList(RunningNorm(channels, affine=False) for channels in taps.values())
        self.strong = PixelBranch([taps[name] for name in strong], widths)
        self.weak = PixelBranch([taps[name] for name in weak], widths)

    @property
    def config(self) -> dict[str, Any]:
        """What `build` needs. Versions before token_norm read the heads that do without it."""
        config = {
            "taps": self.taps,
            "strong": list(self.branch_taps["strong"]),
            "weak": list(self.branch_taps["weak"]),
            "widths": list(self.widths),
        }
        return config | {"token_norm": True} if self.token_norm else config

    def forward(
        self, features: Mapping[str, Tensor], time: Tensor, size: Sequence[int], branch: str = "strong"
    ) -> Tensor:
        """Depth of one branch."""
        return self.branches(features, time, size, (branch,))[0]

    def branches(
        self, features: Mapping[str, Tensor], time: Tensor, size: Sequence[int], branches: Sequence[str]
    ) -> list[Tensor]:
        """Depth of several branches; shared features are computed once."""
        needed = {name for branch in branches for name in self.branch_taps[branch]}
        standard = {}
        for name, standardise in zip(self.taps, self.standardise, strict=True):
            if name in needed:
                f = features[name].float()
                standard[name] = standardise(normalise_tokens(f) if self.token_norm else f)
        embedding = embed_time(time)
        return [
            getattr(self, branch)([standard[name] for name in self.branch_taps[branch]], embedding, size)
            for branch in branches
        ]


class PixelBranch(nn.Module):
    """The MLP of one branch. channels: of each of its features."""

    def __init__(self, channels: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.layers = nn.ModuleList(
            PixelLayer(before, after)
            for before, after in zip((sum(channels), *widths[:-1]), widths, strict=True)
        )
        self.depth = nn.Linear(widths[-1], 1)

    def forward(self, features: Sequence[Tensor], embedding: Tensor, size: Sequence[int]) -> Tensor:
        """(B, C_i, h_i, w_i) each -> (B, 1, *size)."""
        first, *others = cast("Iterable[PixelLayer]", self.layers)  # a ModuleList holds any Module
        # Resizing and Linear commute (docs/derivations.md), so each block is multiplied at its own
        # resolution.
        parts = first.linear.weight.split(self.channels, dim=1)
        product = sum(
            resize(_linear(f, weight), size) for f, weight in zip(features, parts, strict=True)
        ) + first.linear.bias.view(1, -1, 1, 1)
        h = first.after_linear(product, embedding)
        for layer in others:
            h = layer.after_linear(_linear(h, layer.linear.weight, layer.linear.bias), embedding)
        return _linear(h, self.depth.weight, self.depth.bias).sigmoid()


class PixelLayer(nn.Module):
    """[Linear -> SiLU -> BatchNorm] + [embedding -> Linear]."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after)
        self.norm = RunningNorm(after)
        self.time = nn.Linear(TIME_CHANNELS, after)

    def after_linear(self, product: Tensor, embedding: Tensor) -> Tensor:
        """What follows the Linear: (B, width, h, w) -> the same."""
        return self.norm(F.silu(product)) + self.time(embedding)[:, :, None, None]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A Linear on the channels of every pixel."""
    return F.conv2d(x, weight[:, :, None, None], bias)
