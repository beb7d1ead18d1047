"""The aggregation network of Readout Guidance (arXiv:2312.02150), with the parameter names of its public
files.

It reads the residual branch of every decoder ResBlock (what the block adds to its shortcut) and the UNet's
own embedding of the time. Every feature is resized to the latent and passes a bottleneck. Softmaxed mixing
weights add the results up, and a small convolutional head predicts the depth.

The public files have no weak branch. Here it is the same network with the mixing weights of the weak blocks
alone, so it has no parameters of its own. Train Depth Head trains both together; in public files the weak
branch is untrained (docs/derivations.md).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .limits import require_branch, require_taps, require_widths
from .resize import resize

GROUPS = 32
OUTPUT_CHANNELS = 3


class Readout(nn.Module):
    """The interface is that of architectures/__init__.py.

    taps: name -> channels, the residual branches, deepest block first. weak: the names that the weak branch
    reads; the strong one reads all. embedding: name and channels of the UNet's embedding of the time.
    projection: channels of a bottleneck's output, a multiple of 128. Raises ValueError for a weak name that
    is not in taps, and beyond limits.py.
    """

    def __init__(
        self,
        taps: Mapping[str, int],
        weak: Sequence[str],
        embedding: tuple[str, int],
        projection: int = 384,
    ) -> None:
        super().__init__()
        self.embedding, embedding_channels = embedding
        require_taps(taps)
        require_taps({self.embedding: embedding_channels})
        require_branch("weak", weak, taps)
        require_widths([projection])
        if self.embedding in taps or projection % (4 * GROUPS):
            raise ValueError(
                f"the embedding must not be a tap, projection must be a multiple of {4 * GROUPS}"
            )
        self.residuals = tuple(taps)
        self.projection = projection
        self.taps = {**taps, self.embedding: embedding_channels}
        self.branch_taps = {"strong": tuple(self.taps), "weak": (*weak, self.embedding)}
        self.bottleneck_layers = nn.ModuleList(
            Bottleneck(channels, projection, embedding_channels) for channels in taps.values()
        )
        self.mixing_weights = nn.Parameter(torch.ones(len(taps)))
        self.output_head = nn.Sequential(
            nn.Conv2d(projection, 128, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(128, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, OUTPUT_CHANNELS, 1),
            nn.Tanh(),
        )

    @property
    def config(self) -> dict[str, Any]:
        """What `build` needs."""
        return {
            "taps": {name: self.taps[name] for name in self.residuals},
            "weak": [name for name in self.branch_taps["weak"] if name != self.embedding],
            "embedding": [self.embedding, self.taps[self.embedding]],
            "projection": self.projection,
        }

    def forward(
        self, features: Mapping[str, Tensor], time: Tensor, size: Sequence[int], branch: str = "strong"
    ) -> Tensor:
        """Depth of one branch. time is not used: the UNet's embedding has it."""
        return self.branches(features, time, size, (branch,))[0]

    def branches(
        self, features: Mapping[str, Tensor], time: Tensor, size: Sequence[int], branches: Sequence[str]
    ) -> list[Tensor]:
        """Depth of several branches; what they share is computed once."""
        wanted = [i for i, name in enumerate(self.residuals) if any(self.reads(b, name) for b in branches)]
        embedding = features[self.embedding].float()
        mixed: list[Tensor | float] = [0.0] * len(branches)
        shares = [self.mixture(branch) for branch in branches]
        for i in wanted:
            x = resize(features[self.residuals[i]].float(), size)
            x = self.bottleneck_layers[i](x, embedding)
            for b, branch in enumerate(branches):
                if self.reads(branch, self.residuals[i]):
                    mixed[b] = mixed[b] + shares[b][i] * x
        # Three equal channels in (-1, 1) is how the public heads were trained.
        return [(self.output_head(x).mean(dim=1, keepdim=True) + 1) / 2 for x in mixed]

    def reads(self, branch: str, name: str) -> bool:
        """Whether a branch reads a tap."""
        return name in self.branch_taps[branch]

    def mixture(self, branch: str) -> Tensor:
        """Share of each feature, (number of features,): 0 for those that the branch does not read."""
        unread = torch.tensor([not self.reads(branch, name) for name in self.residuals])
        return self.mixing_weights.masked_fill(unread.to(self.mixing_weights.device), -torch.inf).softmax(0)


class Bottleneck(nn.Module):
    """One feature to `projection` channels. Normalised convolutions throughout, no biases."""

    def __init__(self, channels: int, projection: int, embedding_channels: int) -> None:
        super().__init__()
        narrow = projection // 4
        self.shortcut = NormalisedConv(channels, projection, 1) if channels != projection else None
        self.conv1 = NormalisedConv(channels, narrow, 1)
        self.conv2 = NormalisedConv(narrow, narrow, 3)
        self.conv3 = NormalisedConv(narrow, projection, 1)
        self.emb_layers = nn.Linear(embedding_channels, narrow)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, h, w), (B, E) -> (B, projection, h, w)."""
        h = self.conv1(x).relu() + self.emb_layers(embedding).relu()[:, :, None, None]
        h = self.conv3(self.conv2(h).relu())
        return (h + (x if self.shortcut is None else self.shortcut(x))).relu()


class NormalisedConv(nn.Conv2d):
    """Convolution -> GroupNorm; the norm's parameters stand below the convolution's name."""

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__(before, after, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(GROUPS, after)
        # On the meta device there is nothing to draw, and torch would import for seconds.
        if not self.weight.is_meta:
            nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, h, w) -> (B, after, h, w)."""
        return self.norm(F.conv2d(x, self.weight, padding=self.padding))
