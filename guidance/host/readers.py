"""What the records are made of, layer by layer: attention received, attention to the prompt, features."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..prompt_attention import prompt_attention
from .attention_tap import Attention, UNetAttentionTap
from .blocks import AttentionLayer, FeatureLayer
from .evaluation import Maps
from .feature_tap import FeatureTap
from .joint_attention_tap import JointAttentionTap
from .joint_models import joint_model
from .recording import RECEIVED, received_by

PROMPT, FEATURES = "prompt", "features"
# The host's names for the attentions of a UNet that are read for a kind of map.
UNET_ATTENTION = {RECEIVED: "attn1", PROMPT: "attn2"}


class MapKey(NamedTuple):
    """What a map in a recording is: its kind, RECEIVED, PROMPT or FEATURES, and the name of its layer."""

    kind: str
    layer: str


def received_map(attention: Attention, rows: list[int]) -> Tensor:
    """The attention received in the given rows of the batch: (len(rows), 1, *grid)."""
    return received_by(attention, rows).unsqueeze(1)


def prompt_map(attention: Attention, rows: list[int]) -> Tensor:
    """The attention that the image gives to the prompt in the given rows: (len(rows), tokens, *grid)."""
    q, k, mask = attention.part(rows, slice(None))
    return prompt_attention(q, k, attention.prompt, mask).unflatten(2, attention.grid)


MAP_OF = {RECEIVED: received_map, PROMPT: prompt_map}


@dataclass(frozen=True)
class AttentionReader:
    """Reads `kinds`, RECEIVED (one channel) and PROMPT (a channel a token), in the layers that have names."""

    names: Mapping[AttentionLayer, str]
    kinds: tuple[str, ...]

    @contextmanager
    def reading(
        self,
        diffusion_model: torch.nn.Module,
        x: Tensor,
        context: Tensor,
        rows: list[int],
        transformer_options: dict[str, Any],
    ) -> Iterator[tuple[dict[str, Any], Maps]]:
        """Reader.reading."""
        maps: Maps = {}

        def read(attention: Attention, *kinds: str) -> None:
            for kind in kinds:
                maps[MapKey(kind, self.names[attention.layer])] = MAP_OF[kind](attention, rows)

        if joint_model(diffusion_model):
            tap = JointAttentionTap(self.names, diffusion_model, x, context, lambda a: read(a, *self.kinds))
            yield tap.install(transformer_options), maps
            return
        for kind in self.kinds:
            tap = UNetAttentionTap(self.names, lambda a, kind=kind: read(a, kind), UNET_ATTENTION[kind])
            transformer_options = tap.install(transformer_options)
        yield transformer_options, maps


@dataclass(frozen=True)
class FeatureReader:
    """Reads the features of the layers that have names."""

    names: Mapping[FeatureLayer, str]

    @contextmanager
    def reading(
        self,
        diffusion_model: torch.nn.Module,
        x: Tensor,
        context: Tensor,
        rows: list[int],
        transformer_options: dict[str, Any],
    ) -> Iterator[tuple[dict[str, Any], Maps]]:
        """Reader.reading."""
        maps: Maps = {}

        def read(layer: FeatureLayer, features: Tensor) -> None:
            maps[MapKey(FEATURES, self.names[layer])] = features[rows]

        with FeatureTap(tuple(self.names), read).reading(diffusion_model, x, context):
            yield transformer_options, maps
