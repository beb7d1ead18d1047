"""The tap for transformers whose blocks attend over text and image at once: SD3, Flux, Chroma, Qwen, Lumina.

Read are the queries of the image's tokens and all keys. For the attention that these tokens receive, the
softmax is over the keys of the image alone (attention_received.py), so that its mean is 1 as in a UNet,
whatever share goes to the prompt or to reference images.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .attention_tap import Attention
from .blocks import AttentionLayer
from .joint_models import JointModel, Tokens


class JointAttentionTap:
    """Reads `layers` in one forward pass, and hands each to `read` once. x (B, C, *spatial) is its input."""

    def __init__(
        self,
        layers: Iterable[AttentionLayer],
        joint: JointModel,
        diffusion_model: torch.nn.Module,
        x: Tensor,
        context: Tensor | None,
        read: Callable[[Attention], None],
    ) -> None:
        self.unread = set(layers)
        self.read = read
        self.names_blocks = joint.names_blocks
        self.tokens = Tokens(joint, diffusion_model, x, context)
        self.override: Callable[..., Tensor] | None = None

    def install(self, transformer_options: dict[str, Any]) -> dict[str, Any]:
        """A copy of one forward pass's transformer_options with the tap in it."""
        options = transformer_options.copy()
        self.override = options.get("optimized_attention_override")
        options["optimized_attention_override"] = self
        if not self.names_blocks:
            replace = options.get("patches_replace", {})
            blocks = dict(replace.get("dit", {}))
            for layer in self.unread:
                key = ("double_block", layer.number)
                blocks[key] = partial(name_block, layer, blocks.get(key))
            options["patches_replace"] = replace | {"dit": blocks}
        return options

    def __call__(self, attention: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """optimized_attention_override."""
        options = kwargs["transformer_options"]
        if "block_type" in options:
            layer = AttentionLayer(options["block_type"], options["block_index"], 0)
            # The first attention in a block; SD3.5 has a second one, over the image alone.
            found = self.of_the_image(layer, *args, **kwargs) if layer in self.unread else None
            if found:
                self.unread.discard(layer)
                self.read(found)
        if self.override is not None:
            return self.override(attention, *args, **kwargs)
        return attention(*args, **kwargs)

    def of_the_image(
        self,
        layer: AttentionLayer,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        skip_reshape: bool = False,
        **_: Any,
    ) -> Attention | None:
        """The attention of the image's tokens; None where the sequence is not the one of the model."""
        if not skip_reshape:  # (B, N, H d)
            q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
        image = self.tokens.image(k.shape[2])
        if image is None:
            return None
        if mask is not None:
            mask = mask.reshape(mask.shape[0] if mask.ndim > 2 else 1, -1, *mask.shape[-2:])
            mask = mask[..., image, :] if mask.shape[-2] > 1 else mask
        return Attention(layer, q[:, :, image], k, mask, 1, self.tokens.grid, image, self.tokens.prompt)


def name_block(
    layer: AttentionLayer,
    replacement: Callable[..., dict[str, Tensor]] | None,
    args: dict[str, Any],
    extra: dict[str, Any],
) -> dict[str, Tensor]:
    """patches_replace["dit"]: tell the attention its block, as other models of the host do."""
    options = args["transformer_options"] | {"block_type": layer.part, "block_index": layer.number}
    args = args | {"transformer_options": options}
    return replacement(args, extra) if replacement else extra["original_block"](args)
