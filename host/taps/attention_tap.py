"""Reads the queries and keys of chosen attention layers during one forward pass.

In a UNet the host runs `attn1_patch` right before its self-attention (attn2 for the attention to the prompt),
and then projects the tokens to q and k, whether or not another node replaces the attention itself. The tap is
such a patch, which tells the layer, and hooks on the two projections. So the attention is the host's own, bit
for bit, with the kernel that the user or the checkpoint chose. An `optimized_attention_override` would see q
and k too, but there is one for a whole pass, and where one is set newer hosts and kernels of other packs step
back. An attn1 replacement would have to recompute the attention. A block has room for only one, and a
replacement for one transformer hides another node's replacement for the block (the host's SAG hides its PAG).

A tap is made for one forward pass and dropped with it. Two passes, even of one model in two threads, have two
taps.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .blocks import UNET_PARTS, AttentionLayer
from .hooks import forward_hook


class Attention(NamedTuple):
    """The arguments of a layer's attention, for the queries of the image.

    q (B, H, n_q, d), k (B, H_k, n_k, d), attn_mask (B or 1, H or 1, n_q or 1, n_k) or None. image and prompt:
    which of the keys are the tokens of the image, in the order of the grid, and of the prompt.

    If a node such as HyperTile computes self-attention in tiles, B is `tiles` times the rows of the latent
    batch, with the tiles of a row one after the other. The number of tokens is then n_k * tiles.
    """

    layer: AttentionLayer
    q: Tensor
    k: Tensor
    attn_mask: Tensor | None
    tiles: int
    grid: tuple[int, ...]
    image: slice
    prompt: slice

    def part(self, rows: list[int], keys: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """q, k and attn_mask of these rows of the latent batch and of these keys."""

        def of_rows(t: Tensor) -> Tensor:
            return t.unflatten(0, (-1, self.tiles))[rows].flatten(0, 1)

        mask = self.attn_mask
        if mask is not None:
            mask = mask[..., keys]
            mask = of_rows(mask) if mask.shape[0] > 1 else mask
        return of_rows(self.q), of_rows(self.k[:, :, keys]), mask


ALL, NONE = slice(None), slice(0)


class UNetAttentionTap:
    """Reads `layers` in one forward pass of a UNet, and hands each to `read` once.

    kind: the host's name for the attention, "attn1" within the image, "attn2" from the image to the prompt.
    """

    def __init__(
        self,
        layers: Iterable[AttentionLayer],
        diffusion_model: torch.nn.Module,
        read: Callable[[Attention], None],
        kind: str = "attn1",
    ) -> None:
        self.unread = set(layers)
        self.modules = [getattr(transformer_of(diffusion_model, layer), kind) for layer in layers]
        self.read = read
        self.kind = kind
        self.armed: AttentionLayer | None = None
        self.extra_options: dict[str, Any] = {}
        self.q: Tensor | None = None

    @contextmanager
    def reading(self, transformer_options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Context that gives a copy of the transformer_options, for the one forward pass inside it."""
        patches, name = transformer_options.get("patches", {}), f"{self.kind}_patch"
        with ExitStack() as stack:
            for attention in self.modules:
                stack.enter_context(forward_hook(attention.to_q, self.keep_q))
                stack.enter_context(forward_hook(attention.to_k, self.read_k))
            yield transformer_options | {"patches": patches | {name: [*patches.get(name, []), self.arm]}}

    def arm(
        self, n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """attn1_patch, attn2_patch: the next projections are those of this layer.

        Video UNets attend over the frames under the same name, but only after the image.
        """
        part, number = extra_options["block"]
        layer = AttentionLayer(part, number, extra_options["block_index"])
        self.armed = layer if layer in self.unread else None
        self.extra_options = extra_options
        return n, context, value

    def keep_q(self, module: torch.nn.Module, args: tuple[Any, ...], q: Tensor) -> None:
        """Forward hook of to_q."""
        self.q = q if self.armed else None

    def read_k(self, module: torch.nn.Module, args: tuple[Any, ...], k: Tensor) -> None:
        """Forward hook of to_k: hand over q and k."""
        (layer, self.armed), (q, self.q) = (self.armed, None), (self.q, None)
        if layer is None or q is None:
            return
        with torch.no_grad():  # reading adds nothing to a graph
            found = (to_image if self.kind == "attn1" else to_prompt)(layer, q, k, self.extra_options)
            if found:
                self.unread.discard(layer)
                self.read(found)


def transformer_of(diffusion_model: torch.nn.Module, layer: AttentionLayer) -> torch.nn.Module:
    """The transformer of a UNet's block that a layer is in."""
    blocks = getattr(diffusion_model, dict(UNET_PARTS.values())[layer.part])
    block = blocks if layer.part == "middle" else blocks[layer.number]
    return next(
        module.transformer_blocks[layer.transformer]
        for module in block
        if len(getattr(module, "transformer_blocks", ())) > layer.transformer
    )


def to_image(layer: AttentionLayer, q: Tensor, k: Tensor, extra_options: dict[str, Any]) -> Attention | None:
    """The queries and keys of the host's self-attention, (B, N, H d), as an Attention.

    None if the keys are not the tokens of the image in their order: then there is no map to read.
    """
    batch, _, *grid = extra_options["activations_shape"]
    tiles = q.shape[0] // batch
    if k.shape[:2] != (batch, grid[0] * grid[1]) or k.shape[1] % tiles:
        return None
    # HyperTile passes tiles of queries and whole keys; the host's attention then splits the keys like this.
    q, k = split_heads(q, k, extra_options)
    return Attention(layer, q, k, None, tiles, tuple(grid), image=ALL, prompt=NONE)


def to_prompt(layer: AttentionLayer, q: Tensor, k: Tensor, extra_options: dict[str, Any]) -> Attention | None:
    """The queries and keys of the host's attention to the prompt as an Attention.

    None if the queries are not the tokens of the image.
    """
    batch, _, *grid = extra_options["activations_shape"]
    if q.shape[:2] != (batch, grid[0] * grid[1]) or k.shape[0] != batch:
        return None
    q, k = split_heads(q, k, extra_options)
    return Attention(layer, q, k, None, 1, tuple(grid), image=NONE, prompt=ALL)


def split_heads(q: Tensor, k: Tensor, extra_options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """From (B, N, H d) to (B, H, N, d), with as many rows in k as in q, in the layer's precision."""
    heads = extra_options["n_heads"]
    q, k = (t.reshape(q.shape[0], -1, heads, t.shape[-1] // heads).transpose(1, 2) for t in (q, k))
    if extra_options["attn_precision"] == torch.float32:
        q, k = q.float(), k.float()
    return q, k
