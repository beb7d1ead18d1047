"""Reads the features of chosen layers, the outputs of blocks, during one forward pass.

No patch of the host sees all of them: not the last output block, not the inside of a ResBlock, not a block of
SD3 or Lumina. So the tap uses forward hooks. It registers them when the pass begins and removes them when it
ends, even by an error. The hooks return nothing, so the pass stays the same, bit for bit.

Like an attention tap, a feature tap is made for one forward pass and dropped with it. In a pass with
gradients, its tensors are part of the graph.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .blocks import FeatureLayer
from .hooks import forward_hook
from .joint_models import JointModel, Stack, joint_model
from .tokens import Tokens


class Stopped(Exception):  # noqa: N818 (not an error)
    """Ends a forward pass after everything has been read."""


class FeatureTap:
    """Reads `layers` in one forward pass, and hands each to `read` once: read(layer, (B, C, *grid)).

    Rows are those of the model's batch. The features of joint models are the image's tokens. The host may add
    a ControlNet's output to the tensor afterwards, in place: clone what you keep.

    stop: end the pass when everything is read, so that the rest of the model is neither computed nor kept for
    a backward pass.
    """

    def __init__(
        self,
        layers: Sequence[FeatureLayer],
        read: Callable[[FeatureLayer, Tensor], None],
        *,
        stop: bool = False,
    ) -> None:
        self.unread = set(layers)
        self.read = read
        self.stop = stop

    @contextmanager
    def reading(self, diffusion_model: torch.nn.Module, x: Tensor, context: Tensor | None) -> Iterator[None]:
        """Context in which a forward pass is read; where `stop` ends the pass, the `with` block ends.

        x (B, C, *spatial), context (B, tokens, d): the pass's latent and prompt, as an APPLY_MODEL wrapper
        gets them. A second pass inside it is not read.
        """
        joint = joint_model(diffusion_model)
        with suppress(Stopped), ExitStack() as exits:
            if joint is not None:
                tokens = Tokens(joint, diffusion_model, x, context)
                exits.enter_context(tokens.observing(diffusion_model))
            for layer in self.unread:
                features: Callable[[Any], Tensor | None] | None = None
                if joint is not None:
                    block, stack = _joint_block(diffusion_model, joint, layer)
                    features = partial(_of_the_image, stack, tokens)
                else:
                    block = _unet_module(diffusion_model, layer)
                exits.enter_context(forward_hook(block, partial(self.hook, layer, features)))
            yield

    def hook(
        self,
        layer: FeatureLayer,
        features: Callable[[Any], Tensor | None] | None,
        module: torch.nn.Module,
        args: tuple[Any, ...],
        out: Any,
    ) -> None:
        """Forward hook: hand over the layer, the first time that it is computed."""
        if layer not in self.unread:
            return
        found = features(out) if features else out
        if found is None:
            return
        self.unread.discard(layer)
        self.read(layer, found)
        if self.stop and not self.unread:
            raise Stopped


def _unet_module(diffusion_model: Any, layer: FeatureLayer) -> torch.nn.Module:
    """The module whose output is the feature. The host calls the modules in a block, never the block."""
    if layer.part == "input":
        return diffusion_model.input_blocks[layer.number][-1]
    if layer.part == "middle":
        return diffusion_model.middle_block[-1]
    block = diffusion_model.output_blocks[layer.number]
    return block[0].out_layers[-1] if layer.part == "residual" else block[-1]


def _joint_block(
    diffusion_model: torch.nn.Module, joint: JointModel, layer: FeatureLayer
) -> tuple[torch.nn.Module, Stack]:
    stack = next(s for s in joint.stacks if s.block_type == layer.part)
    return getattr(diffusion_model, stack.attribute)[layer.number], stack


def _of_the_image(stack: Stack, tokens: Tokens, out: Any) -> Tensor | None:
    """A block's output as (B, C, *grid); None if the sequence is not the model's."""
    if stack.image is None:
        features = out.flatten(1, -2)
        image = tokens.image(features.shape[1])
    else:  # a sequence of its own, without text
        features = out[stack.image]
        image = tokens.image_among_images(features.shape[1])
    if image is None or len(features) != tokens.batch:
        return None
    return features[:, image].movedim(2, 1).unflatten(2, tokens.grid)
