"""The transformers of the host whose blocks attend over text and image at once, and can be read."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Stack(NamedTuple):
    """Blocks of one kind: its name in transformer_options, the model's attribute that holds them.

    image: which of a block's two outputs has the image's tokens; None where there is one output for all.
    """

    block_type: str
    attribute: str
    image: int | None


@dataclass(frozen=True)
class JointModel:
    """How a family of the host's models names its blocks and orders its tokens.

    stacks: in the order of the forward pass.
    image_last: the image's tokens end the sequence; otherwise they follow the text, before other images'.
    names_blocks: whether the host tells the block in transformer_options.
    """

    stacks: tuple[Stack, ...]
    image_last: bool
    names_blocks: bool = True


DOUBLE_AND_SINGLE = (Stack("double", "double_blocks", image=0), Stack("single", "single_blocks", image=None))
JOINT_MODELS = {
    "comfy.ldm.modules.diffusionmodules.mmdit.MMDiT": JointModel(
        (Stack("double", "joint_blocks", image=1),), image_last=True, names_blocks=False
    ),
    "comfy.ldm.flux.model.Flux": JointModel(DOUBLE_AND_SINGLE, image_last=False),
    "comfy.ldm.chroma.model.Chroma": JointModel(DOUBLE_AND_SINGLE, image_last=False),
    "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel": JointModel(
        (Stack("double", "transformer_blocks", image=1),), image_last=False
    ),
    "comfy.ldm.lumina.model.NextDiT": JointModel((Stack("double", "layers", image=None),), image_last=True),
}


def joint_model(diffusion_model: torch.nn.Module) -> JointModel | None:
    """The family that a model belongs to, by its class or a base class of it."""
    model = getattr(diffusion_model, "_orig_mod", diffusion_model)  # as torch.compile wraps it
    names = (f"{base.__module__}.{base.__qualname__}" for base in type(model).__mro__)
    return next((JOINT_MODELS[name] for name in names if name in JOINT_MODELS), None)


class Tokens:
    """Where the tokens of the image and of the prompt are in one forward pass of a joint model.

    x (B, C, *spatial) and context (B, tokens, d) are the input of the pass; grid is the image's.
    """

    def __init__(self, joint: JointModel, diffusion_model: Any, x: Tensor, context: Tensor | None) -> None:
        patch = diffusion_model.patch_size
        *frames, height, width = x.shape[2:]
        self.grid: tuple[int, ...] = (*frames, -(-height // patch), -(-width // patch))
        self.count = torch.Size(self.grid).numel()
        self.prompt = slice(0, 0 if context is None else context.shape[1])
        self.image_last = joint.image_last
        # Z-Image fills the image up to a multiple of its tokens.
        self.multiple = getattr(diffusion_model, "pad_tokens_multiple", None) or 1

    def image(self, length: int) -> slice | None:
        """The image in a sequence of all tokens; None where the sequence is not the one of the model."""
        start = self.prompt.stop
        if self.image_last:
            start = length + -(-self.count // self.multiple) * -self.multiple
        return slice(start, start + self.count) if 0 <= start <= length - self.count else None
