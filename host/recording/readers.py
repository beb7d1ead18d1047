"""The readers of the Record nodes: attention received, attention to the prompt, features and depth."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...depth_head.architectures import STRONG
from ...guidance.prompt_attention import prompt_attention
from ..depth.heads import HostedDepthHead, feature_channels
from ..sampling.attention_recorder import RECEIVED
from ..sampling.chunks import ForwardPass, MapKey, Maps, Reader
from ..sampling.noise_levels import time_at
from ..taps.attention_received import attention_tap, received_by
from ..taps.attention_tap import Attention
from ..taps.blocks import AttentionLayer, FeatureLayer, feature_blocks, layers_in
from ..taps.feature_tap import FeatureTap
from ..taps.named_features import NamedFeatures

PROMPT, FEATURES, DEPTH = "prompt", "features", "depth"
# The host's names for the attentions that are read for a kind of map.
ATTENTION = {RECEIVED: "attn1", PROMPT: "attn2"}


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
    """Reads `kinds`, RECEIVED (one channel) and PROMPT (one channel per token), in the named layers."""

    names: Mapping[AttentionLayer, str]
    kinds: tuple[str, ...]

    @contextmanager
    def reading(self, forward: ForwardPass, rows: list[int]) -> Iterator[tuple[dict[str, Any], Maps]]:
        """Reader.reading."""
        maps: Maps = {}

        def read(kind: str, attention: Attention) -> None:
            maps[MapKey(kind, self.names[attention.layer])] = MAP_OF[kind](attention, rows)

        transformer_options = forward.transformer_options
        with ExitStack() as stack:
            for kind in self.kinds:
                tap = attention_tap(
                    tuple(self.names),
                    forward.model.diffusion_model,
                    forward.x,
                    forward.context,
                    partial(read, kind),
                    ATTENTION[kind],
                )
                transformer_options = stack.enter_context(tap.reading(transformer_options))
            yield transformer_options, maps


@dataclass(frozen=True)
class FeatureReader:
    """Reads the features of the named layers, of those that the model of the pass has."""

    names: Mapping[FeatureLayer, str]

    @contextmanager
    def reading(self, forward: ForwardPass, rows: list[int]) -> Iterator[tuple[dict[str, Any], Maps]]:
        """Reader.reading."""
        maps: Maps = {}

        def read(layer: FeatureLayer, features: Tensor) -> None:
            maps[MapKey(FEATURES, self.names[layer])] = features[rows]

        diffusion_model = forward.model.diffusion_model
        present = layers_in(feature_blocks(diffusion_model))
        tap = FeatureTap([layer for layer in self.names if layer in present], read)
        with tap.reading(diffusion_model, forward.x, forward.context):
            yield forward.transformer_options, maps


@dataclass(frozen=True)
class DepthReader:
    """Reads the depth (rows, 1, h, w) with the strong branch of a head that the host has loaded too.

    The head runs while the model samples, so that its features, a thousand times larger, need not be kept.
    It reads nothing of another model, as that of DualModelGuider for the negative may be.
    """

    head: HostedDepthHead

    @contextmanager
    def reading(self, forward: ForwardPass, rows: list[int]) -> Iterator[tuple[dict[str, Any], Maps]]:
        """Reader.reading."""
        network = self.head.head.network
        maps: Maps = {}
        if not network.taps.items() <= feature_channels(forward.model.diffusion_model).items():
            yield forward.transformer_options, maps
            return
        features = NamedFeatures(forward.model.diffusion_model, network.branch_taps[STRONG], rows)
        with features.reading(forward.x, forward.context):
            yield features.options(forward.transformer_options), maps
        if features.complete:
            time = time_at(forward.model.model_sampling, forward.sigma[rows])
            device = self.head.device
            found = {name: feature.to(device) for name, feature in features.found.items()}
            with torch.no_grad():
                maps[MapKey(DEPTH, DEPTH)] = network(found, time.to(device), forward.x.shape[-2:])


@dataclass(frozen=True)
class Readers:
    """Several readers of the same pass."""

    readers: tuple[Reader, ...]

    @contextmanager
    def reading(self, forward: ForwardPass, rows: list[int]) -> Iterator[tuple[dict[str, Any], Maps]]:
        """Reader.reading."""
        maps: Maps = {}
        parts: list[Maps] = []
        with ExitStack() as stack:
            for reader in self.readers:
                transformer_options, part = stack.enter_context(reader.reading(forward, rows))
                forward = forward._replace(transformer_options=transformer_options)
                parts.append(part)
            yield forward.transformer_options, maps
        for part in parts:
            maps.update(part)
