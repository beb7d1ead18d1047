"""What a head reads in one forward pass: features of blocks by name, and the embedding of the time."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .blocks import FeatureLayer, feature_blocks
from .feature_tap import FeatureTap

# The UNet's own embedding of the time, (B, C), among the features that a head reads.
TIME_TAP = "time"


class NamedFeatures:
    """Reads the features that have these names, in one forward pass of a model.

    names: of blocks.feature_blocks, and TIME_TAP. rows: of the batch; None is all. Made for one pass and
    dropped with it.
    """

    def __init__(
        self, diffusion_model: torch.nn.Module, names: Collection[str], rows: list[int] | None = None
    ) -> None:
        blocks = feature_blocks(diffusion_model)
        self.diffusion_model = diffusion_model
        self.names = {blocks[name][0]: name for name in names if name != TIME_TAP}
        self.reads_time = TIME_TAP in names
        self.rows: list[int] | slice = slice(None) if rows is None else rows
        self.found: dict[str, Tensor] = {}

    @property
    def layers(self) -> tuple[FeatureLayer, ...]:
        """The layers that have names."""
        return tuple(self.names)

    @property
    def complete(self) -> bool:
        """Whether everything was read. Another node's cache may have skipped layers."""
        return len(self.found) == len(self.names) + self.reads_time

    def options(self, transformer_options: dict[str, Any]) -> dict[str, Any]:
        """The options for the pass; a copy that reads the embedding of the time, if that is needed."""
        if not self.reads_time:
            return transformer_options
        patches = transformer_options.get("patches", {})
        emb_patches = [*patches.get("emb_patch", []), self.read_time]
        return transformer_options | {"patches": patches | {"emb_patch": emb_patches}}

    def read_time(self, embedding: Tensor, channels: int, transformer_options: dict[str, Any]) -> Tensor:
        """emb_patch: keeps the embedding, to which SDXL adds others afterwards."""
        self.found[TIME_TAP] = embedding[self.rows].clone()
        return embedding

    def read(self, layer: FeatureLayer, features: Tensor) -> None:
        """Keeps a copy: FreeU and ControlNets change features in place afterwards."""
        self.found[self.names[layer]] = of_image(features)[self.rows].clone()

    @contextmanager
    def reading(self, x: Tensor, context: Tensor | None, *, stop: bool = False) -> Iterator[None]:
        """FeatureTap.reading, of the pass that gets `options`."""
        with FeatureTap(self.layers, self.read, stop=stop).reading(self.diffusion_model, x, context):
            yield

    def with_time(self, features: Mapping[FeatureLayer, Tensor]) -> dict[str, Tensor]:
        """Features that another tap has read, by name, with the time that was read here."""
        return self.found | {name: of_image(features[layer]) for layer, name in self.names.items()}


def of_image(features: Tensor) -> Tensor:
    """(B, C, h, w), also of a video model's (B, C, 1, h, w). Raises ValueError for several frames."""
    if features.ndim < 5:
        return features
    if features.shape[2] > 1:
        raise ValueError(
            f"Depth heads read images, and this latent is a video of {features.shape[2]} frames: use a "
            "latent of one frame."
        )
    return features.squeeze(2)
