"""Reads the queries and keys of chosen attention layers during one forward pass.

The tap is an `optimized_attention_override`, in front of an override that is already set. Every architecture
of the host calls its attention through this override. The tap looks at q and k and passes the call on, so the
attention is the host's own, bit for bit, with the kernel that the user chose. An attn1 replacement would have
to recompute the attention. A block has room for only one, and a replacement for one transformer hides another
node's replacement for the block (the host's SAG hides its PAG).

The override does not say which attention a call is. In a UNet the host runs `attn1_patch` right before its
self-attention and `attn1_output_patch` right after it (attn2 for the attention to the prompt), so the tap
reads only the first call between the two. Another node's replacement of a block's attention may never call
the host's attention, so there the tap reads the arguments of the replacement.

A tap is made for one forward pass and dropped with it. Two passes, even in two threads on two GPUs, have two
taps.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .blocks import AttentionLayer


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
        self, layers: Iterable[AttentionLayer], read: Callable[[Attention], None], kind: str = "attn1"
    ) -> None:
        self.unread = set(layers)
        self.read = read
        self.kind = kind
        self.armed: AttentionLayer | None = None
        self.override: Callable[..., Tensor] | None = None

    @contextmanager
    def reading(self, transformer_options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Context that gives a copy of the transformer_options, for the one forward pass inside it."""
        options = transformer_options.copy()
        patches = options.get("patches", {})
        before, after = f"{self.kind}_patch", f"{self.kind}_output_patch"
        options["patches"] = patches | {
            before: [*patches.get(before, []), self.arm],
            after: [*patches.get(after, []), self.disarm],
        }
        replace = options.get("patches_replace", {})
        options["patches_replace"] = replace | {
            self.kind: {
                key: partial(self.replacement, patch) for key, patch in replace.get(self.kind, {}).items()
            }
        }
        self.override = options.get("optimized_attention_override")
        options["optimized_attention_override"] = self
        yield options

    def arm(
        self, n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """attn1_patch, attn2_patch: the next attention is that of this block.

        Video UNets attend over the frames under the same name, but only after the image.
        """
        part, number = extra_options["block"]
        layer = AttentionLayer(part, number, extra_options["block_index"])
        self.armed = layer if layer in self.unread else None
        return n, context, value

    def disarm(self, n: Tensor, extra_options: dict[str, Any]) -> Tensor:
        """attn1_output_patch, attn2_output_patch: it is over."""
        self.armed = None
        return n

    def __call__(self, attention: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """optimized_attention_override."""
        self.read_armed(*args, **kwargs)
        if self.override is not None:
            return self.override(attention, *args, **kwargs)
        return attention(*args, **kwargs)

    def replacement(
        self,
        patch: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extra_options: dict[str, Any],
        **kwargs: Any,
    ) -> Tensor:
        """patches_replace["attn1"] or ["attn2"], in front of another node's."""
        self.read_armed(
            q,
            k,
            v,
            extra_options["n_heads"],
            attn_precision=extra_options["attn_precision"],
            transformer_options=extra_options,
        )
        return patch(q, k, v, extra_options, **kwargs)

    def read_armed(self, *args: Any, **kwargs: Any) -> None:
        """Hand over the attention with these arguments if the tap waits for it."""
        layer, self.armed = self.armed, None
        found = layer and (to_image if self.kind == "attn1" else to_prompt)(layer, *args, **kwargs)
        if found:
            self.unread.discard(layer)
            with torch.no_grad():  # reading adds nothing to a graph
                self.read(found)


def to_image(
    layer: AttentionLayer,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    attn_precision: torch.dtype | None = None,
    *,
    transformer_options: dict[str, Any],
    **_: Any,
) -> Attention | None:
    """The arguments of the host's self-attention, (B, N, H d), as an Attention.

    None if the keys are not the tokens of the image in their order: then there is no map to read.
    """
    batch, _, *grid = transformer_options["activations_shape"]
    tiles = q.shape[0] // batch
    if k.shape[:2] != (batch, grid[0] * grid[1]) or k.shape[1] % tiles:
        return None
    # HyperTile passes tiles of queries and whole keys; the host's attention then splits the keys like this.
    q, k, mask = split_heads(q, k, heads, mask, attn_precision)
    return Attention(layer, q, k, mask, tiles, tuple(grid), image=ALL, prompt=NONE)


def to_prompt(
    layer: AttentionLayer,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    attn_precision: torch.dtype | None = None,
    *,
    transformer_options: dict[str, Any],
    **_: Any,
) -> Attention | None:
    """The arguments of the host's attention to the prompt as an Attention.

    None if the queries are not the tokens of the image.
    """
    batch, _, *grid = transformer_options["activations_shape"]
    if q.shape[:2] != (batch, grid[0] * grid[1]) or k.shape[0] != batch:
        return None
    q, k, mask = split_heads(q, k, heads, mask, attn_precision)
    return Attention(layer, q, k, mask, 1, tuple(grid), image=NONE, prompt=ALL)


def split_heads(
    q: Tensor, k: Tensor, heads: int, mask: Tensor | None, attn_precision: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """From (B, N, H d) to (B, H, N, d), with as many rows in k as in q; the mask with four dimensions."""
    q, k = (t.reshape(q.shape[0], -1, heads, t.shape[-1] // heads).transpose(1, 2) for t in (q, k))
    if attn_precision == torch.float32:
        q, k = q.float(), k.float()
    if mask is not None:
        mask = mask.reshape(mask.shape[0] if mask.ndim > 2 else 1, -1, *mask.shape[-2:])
    return q, k, mask
