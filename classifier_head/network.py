"""p(y | x_t, t) from the features of a diffusion model, pooled over the image.

    f_k         features of block k, standardised per channel
    z_k         silu(W_k f_k + b_k + E_k(t)), at every pixel
    h_k         sum over the pixels p of softmax_p(u_k z_k) z_k
    logits      W silu(V [h_1, ..., h_K] + E(t)) + b

The pixel weights are learned, because in a plain mean the background would outweigh a small object.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..depth_head.architectures.limits import require_taps, require_widths
from ..depth_head.architectures.pixel_mlp import TIME_CHANNELS, embed_time, normalise_tokens
from ..depth_head.architectures.running_norm import RunningNorm

WIDTHS = (128, 128)
MOST_CLASSES = 10_000


class ClassifierNetwork(nn.Module):
    """taps: name -> channels of every block that is read. widths: of h_k and of the layer after it.

    token_norm: normalise the channels of each token of a transformer (LayerNorm without parameters). Raises
    ValueError beyond the limits of a head file.
    """

    def __init__(
        self,
        taps: Mapping[str, int],
        classes: int,
        widths: Sequence[int] = WIDTHS,
        token_norm: bool = False,
    ) -> None:
        super().__init__()
        require_taps(taps)
        require_widths(widths)
        if len(widths) != 2:
            raise ValueError(f"it has {len(widths)} widths instead of 2")
        if type(classes) is not int or not 2 <= classes <= MOST_CLASSES:
            raise ValueError(f"it has {classes} classes instead of 2 to {MOST_CLASSES}")
        if type(token_norm) is not bool:
            raise ValueError("token_norm must be true or false")
        self.token_norm = token_norm
        self.taps = dict(taps)
        self.classes = classes
        self.widths = tuple(widths)
        pixel, pooled = widths
        self.standardise = nn.ModuleList(RunningNorm(channels, affine=False) for channels in taps.values())
        self.pixels = nn.ModuleList(nn.Conv2d(channels, pixel, 1) for channels in taps.values())
        self.pixel_times = nn.ModuleList(nn.Linear(TIME_CHANNELS, pixel) for _ in taps)
        self.scores = nn.ModuleList(nn.Conv2d(pixel, 1, 1, bias=False) for _ in taps)
        self.pooled = nn.Linear(len(taps) * pixel, pooled)
        self.time = nn.Linear(TIME_CHANNELS, pooled)
        self.logits = nn.Linear(pooled, classes)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make the same network again, as plain values."""
        return {
            "taps": self.taps,
            "classes": self.classes,
            "widths": list(self.widths),
            "token_norm": self.token_norm,
        }

    def forward(self, features: Mapping[str, Tensor], time: Tensor) -> Tensor:
        """Logits (B, classes), in float32.

        features: tap name -> (B, C, h, w), each block at its own resolution. time (B,) in [0, 1000).
        """
        embedding = embed_time(time)
        pooled = []
        layers = zip(self.taps, self.standardise, self.pixels, self.pixel_times, self.scores, strict=True)
        for name, standardise, pixel, pixel_time, score in layers:
            f = features[name].float()
            if self.token_norm:
                f = normalise_tokens(f)
            z = F.silu(pixel(standardise(f)) + pixel_time(embedding)[:, :, None, None])
            weights = score(z).flatten(2).softmax(dim=2)
            pooled.append((z.flatten(2) * weights).sum(dim=2))
        return self.logits(F.silu(self.pooled(torch.cat(pooled, dim=1)) + self.time(embedding)))
