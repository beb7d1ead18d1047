"""The tap for the self-attention of any model, and the attention received that it gives."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...guidance.self_attention import received_attention
from .attention_tap import Attention, UNetAttentionTap
from .blocks import AttentionLayer, attention_blocks, layers_in
from .joint_attention_tap import JointAttentionTap
from .joint_models import joint_model


def attention_tap(
    layers: Sequence[AttentionLayer],
    diffusion_model: torch.nn.Module,
    x: Tensor,
    context: Tensor | None,
    read: Callable[[Attention], None],
    kind: str = "attn1",
) -> UNetAttentionTap | JointAttentionTap:
    """The tap for an attention of one kind in one forward pass of a model.

    kind: "attn1", within the image, or "attn2", from the image to the prompt. Layers that the model lacks are
    left out: DualModelGuider evaluates the negative with another model, which may have fewer.
    """
    present = layers_in(attention_blocks(diffusion_model))
    layers = [layer for layer in layers if layer in present]
    joint = joint_model(diffusion_model)
    if joint is not None:
        return JointAttentionTap(layers, joint, diffusion_model, x, context, read, kind)
    return UNetAttentionTap(layers, diffusion_model, read, kind)


def received_by(attention: Attention, rows: list[int]) -> Tensor:
    """The attention received in the given rows of the batch: (len(rows), *grid)."""
    received = received_attention(*attention.part(rows, attention.image))
    return received.reshape(len(rows), *attention.grid)
