"""What the records are made of: attention received, attention to the prompt, features, and depth."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import comfy.model_base
import torch
from torch import Tensor

from ...depth_head.architectures import STRONG
from ...guidance.prompt_attention import prompt_attention
from ..depth.heads import HostedDepthHead
from ..sampling.attention_recorder import RECEIVED
from ..sampling.chunks import Maps, Reader
from ..sampling.schedule import time_at
from ..taps.attention_received import received_by
from ..taps.attention_tap import Attention, UNetAttentionTap
from ..taps.blocks import AttentionLayer, FeatureLayer, feature_blocks
from ..taps.feature_tap import TIME_TAP, FeatureTap, with_time_embedding_read
from ..taps.joint_attention_tap import JointAttentionTap
from ..taps.joint_models import joint_model

PROMPT, FEATURES, DEPTH = "prompt", "features", "depth"
# The host's names for the attentions of a UNet that are read for a kind of map.
UNET_ATTENTION = {RECEIVED: "attn1", PROMPT: "attn2"}


class MapKey(NamedTuple):
    """What a map in a recording is: its kind, and the name of its layer; depth, of many layers, has its own.

    kind: RECEIVED, PROMPT, FEATURES or DEPTH.
    """

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
        model: comfy.model_base.BaseModel,
        x: Tensor,
        sigma: Tensor,
        context: Tensor,
        rows: list[int],
        transformer_options: dict[str, Any],
    ) -> Iterator[tuple[dict[str, Any], Maps]]:
        """Reader.reading."""
        maps: Maps = {}

        def read(attention: Attention, *kinds: str) -> None:
            for kind in kinds:
                maps[MapKey(kind, self.names[attention.layer])] = MAP_OF[kind](attention, rows)

        if joint_model(model.diffusion_model):
            tap = JointAttentionTap(
                self.names, model.diffusion_model, x, context, lambda a: read(a, *self.kinds)
            )
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
        model: comfy.model_base.BaseModel,
        x: Tensor,
        sigma: Tensor,
        context: Tensor,
        rows: list[int],
        transformer_options: dict[str, Any],
    ) -> Iterator[tuple[dict[str, Any], Maps]]:
        """Reader.reading."""
        maps: Maps = {}

        def read(layer: FeatureLayer, features: Tensor) -> None:
            maps[MapKey(FEATURES, self.names[layer])] = features[rows]

        with FeatureTap(tuple(self.names), read).reading(model.diffusion_model, x, context):
            yield transformer_options, maps


@dataclass(frozen=True)
class DepthReader:
    """Reads the depth (rows, 1, h, w), by the strong branch of a head that the host has loaded as well.

    The head reads while the model samples, because its depth is all that is worth keeping: 8 kB a step and
    image of SD 1.5 at 512 px, where the features that it reads take 12 MB.
    """

    head: HostedDepthHead

    @contextmanager
    def reading(
        self,
        model: comfy.model_base.BaseModel,
        x: Tensor,
        sigma: Tensor,
        context: Tensor,
        rows: list[int],
        transformer_options: dict[str, Any],
    ) -> Iterator[tuple[dict[str, Any], Maps]]:
        """Reader.reading."""
        network = self.head.head.network
        taps = network.branch_taps[STRONG]
        blocks = feature_blocks(model.diffusion_model)
        names = {blocks[name][0]: name for name in taps if name != TIME_TAP}
        found: dict[str, Tensor] = {}
        embedding: list[Tensor] = []
        maps: Maps = {}

        def read(layer: FeatureLayer, features: Tensor) -> None:
            found[names[layer]] = features[rows]

        if TIME_TAP in taps:
            transformer_options = with_time_embedding_read(transformer_options, embedding)
        with FeatureTap(tuple(names), read).reading(model.diffusion_model, x, context):
            yield transformer_options, maps
        if embedding:
            found[TIME_TAP] = embedding[-1][rows]
        if len(found) == len(taps):  # unless a cache of another node skipped some
            time = time_at(model.model_sampling, sigma[rows])
            with torch.no_grad():
                maps[MapKey(DEPTH, DEPTH)] = network(found, time, x.shape[-2:])


@dataclass(frozen=True)
class Readers:
    """Several readers of the same pass."""

    readers: tuple[Reader, ...]

    @contextmanager
    def reading(
        self,
        model: comfy.model_base.BaseModel,
        x: Tensor,
        sigma: Tensor,
        context: Tensor,
        rows: list[int],
        transformer_options: dict[str, Any],
    ) -> Iterator[tuple[dict[str, Any], Maps]]:
        """Reader.reading."""
        maps: Maps = {}
        parts: list[Maps] = []
        with ExitStack() as stack:
            for reader in self.readers:
                one = reader.reading(model, x, sigma, context, rows, transformer_options)
                transformer_options, part = stack.enter_context(one)
                parts.append(part)
            yield transformer_options, maps
        for part in parts:
            maps.update(part)
