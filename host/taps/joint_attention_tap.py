"""The tap for transformers: SD3, Flux, Qwen-Image, Wan and the others of joint_models.py.

The tap reads the queries of the image's tokens. If text and images attend together, it reads the keys of all
of them. For the attention that the image's tokens receive, the softmax is over their keys alone
(attention_received.py). So its mean is 1, as in a UNet, whatever share goes to the prompt or to reference
images.

Queries and keys are seen where the host calls its attention, after the rotary embedding, by an
`optimized_attention_override`. Not every model says in transformer_options which block attends, and none says
which part of a block. Hooks on the modules do, for the length of the pass, and set the override in the blocks
that are read alone: all others keep the kernel that a checkpoint or another pack chose.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .attention_tap import ALL, NONE, Attention
from .blocks import AttentionLayer
from .hooks import forward_hook, forward_pre_hook
from .joint_models import PROMPT, JointModel
from .overridden_attention import overridden
from .tokens import Tokens


class JointAttentionTap:
    """Reads `layers` in one forward pass, and hands each to `read` once. x (B, C, *spatial) is its input.

    kind: "attn1" within the image, "attn2" from the image to the prompt; one attention may be both.
    """

    def __init__(
        self,
        layers: Iterable[AttentionLayer],
        joint: JointModel,
        diffusion_model: torch.nn.Module,
        x: Tensor,
        context: Tensor | None,
        read: Callable[[Attention], None],
        kind: str = "attn1",
    ) -> None:
        self.unread = set(layers)
        self.read = read
        self.reads_prompt = kind == "attn2"
        self.crosses = self.reads_prompt and bool(joint.stacks[0].cross_attention)
        self.modules = {layer: attending(diffusion_model, joint, layer, self.crosses) for layer in layers}
        self.overridable = joint.overridable
        self.diffusion_model = diffusion_model
        self.tokens = Tokens(joint, diffusion_model, x, context)
        self.armed: AttentionLayer | None = None
        self.override: Callable[..., Tensor] | None = None

    @contextmanager
    def reading(self, transformer_options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Context that gives the transformer_options for the one forward pass inside it."""
        with ExitStack() as stack:
            stack.enter_context(self.tokens.observing(self.diffusion_model))
            for layer, module in self.modules.items():
                stack.enter_context(forward_pre_hook(module, partial(self.arm, layer)))
                stack.enter_context(forward_hook(module, self.disarm))
                if not self.overridable:
                    stack.enter_context(overridden(module, self))
            yield transformer_options

    def arm(
        self, layer: AttentionLayer, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Forward pre-hook: the next attention is that of this layer, and goes through the tap."""
        self.armed = layer if layer in self.unread else None
        options = kwargs.get("transformer_options")
        if options is None or not (self.armed and self.overridable):
            return args, kwargs
        self.override = options.get("optimized_attention_override")
        return args, kwargs | {"transformer_options": options | {"optimized_attention_override": self}}

    def disarm(self, module: torch.nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """Forward hook: it is over."""
        self.armed = None

    def __call__(self, attention: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """optimized_attention_override."""
        layer = self.armed
        # The first attention that fits; SD3.5 has a second one in a block, over the image alone.
        found = self.of_the_image(layer, *args, **kwargs) if layer else None
        if layer and found:
            self.armed = None
            self.unread.discard(layer)
            with torch.no_grad():  # reading adds nothing to a graph or to a block's checkpoint
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
        """The attention of the image's tokens; None if the place of the image or the prompt is unknown."""
        if not skip_reshape:  # (B, N, H d)
            q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
        if k.shape[1] != q.shape[1]:  # a key for several heads
            k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        tokens, length = self.tokens, k.shape[2]
        keys: tuple[int, ...]
        if self.crosses:
            keys, queries = (tokens.sizes[PROMPT],), tokens.image(q.shape[2])
            image, prompt = NONE, ALL
        else:
            # FluxKVCache leaves reference images out of the sequence, and adds their keys of an earlier step.
            keys, queries = (q.shape[2], q.shape[2] + tokens.cut), tokens.image(q.shape[2])
            image, prompt = tokens.image(length) or NONE, tokens.prompt(length)
        if queries is None or len(q) != tokens.batch or length not in keys:
            return None
        if self.reads_prompt and prompt == NONE:
            return None
        if mask is not None:
            mask = mask.reshape(mask.shape[0] if mask.ndim > 2 else 1, -1, *mask.shape[-2:])
            mask = mask[..., queries, :] if mask.shape[-2] > 1 else mask
        return Attention(layer, q[:, :, queries], k, mask, 1, tokens.grid, image, prompt)


def attending(
    diffusion_model: torch.nn.Module, joint: JointModel, layer: AttentionLayer, crosses: bool
) -> torch.nn.Module:
    """The module in which a layer's attention is called."""
    stack = next(s for s in joint.stacks if s.block_type == layer.part)
    block = getattr(diffusion_model, stack.attribute)[layer.number]
    part = stack.cross_attention if crosses else stack.self_attention
    return getattr(block, part) if part else block
