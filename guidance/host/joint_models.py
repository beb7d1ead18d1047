"""The transformers of the host whose blocks attend over text and image at once, and can be read."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class JointModel:
    """How a family of the host's models names its blocks and orders its tokens.

    stacks: (block type in transformer_options, attribute of the model), in the order of the forward pass.
    image_last: the image's tokens end the sequence; otherwise they follow the text, before other images'.
    names_blocks: whether the host tells the block in transformer_options.
    """

    stacks: tuple[tuple[str, str], ...]
    image_last: bool
    names_blocks: bool = True


DOUBLE_AND_SINGLE = (("double", "double_blocks"), ("single", "single_blocks"))
JOINT_MODELS = {
    "comfy.ldm.modules.diffusionmodules.mmdit.MMDiT": JointModel(
        (("double", "joint_blocks"),), image_last=True, names_blocks=False
    ),
    "comfy.ldm.flux.model.Flux": JointModel(DOUBLE_AND_SINGLE, image_last=False),
    "comfy.ldm.chroma.model.Chroma": JointModel(DOUBLE_AND_SINGLE, image_last=False),
    "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel": JointModel(
        (("double", "transformer_blocks"),), image_last=False
    ),
    "comfy.ldm.lumina.model.NextDiT": JointModel((("double", "layers"),), image_last=True),
}


def joint_model(diffusion_model: torch.nn.Module) -> JointModel | None:
    """The family that a model belongs to, by its class or a base class of it."""
    model = getattr(diffusion_model, "_orig_mod", diffusion_model)  # as torch.compile wraps it
    names = (f"{base.__module__}.{base.__qualname__}" for base in type(model).__mro__)
    return next((JOINT_MODELS[name] for name in names if name in JOINT_MODELS), None)
