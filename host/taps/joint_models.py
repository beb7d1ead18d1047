"""The host's diffusion transformers that can be read: how a family names its blocks and orders its tokens.

A family is found by its class or a base class, so FLUX.2 is a Flux and Qwen-Image 2.1 a Qwen-Image.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

# The parts of a sequence. REFERENCES are other images, TEXTS those before and between them, in front of the
# prompt; OTHER is registers, padding, texts of other encoders.
IMAGE, PROMPT, REFERENCES, TEXTS, OTHER = "image", "prompt", "references", "texts", "other"


class Stack(NamedTuple):
    """Blocks of one kind: our name for the kind, the model's attribute that holds them.

    image: which of a block's two outputs has the images' tokens; None where there is one output for all.
    self_attention, cross_attention: the parts of a block that attend within the image, and from it to the
    prompt. Without cross_attention the first does both; it is the block itself where it has no name.
    """

    block_type: str
    attribute: str
    image: int | None
    self_attention: str = ""
    cross_attention: str = ""


@dataclass(frozen=True)
class JointModel:
    """How a family of the host's transformers names its blocks and orders its tokens.

    name: what people call it, in messages and in docs/models.md.
    stacks: in the order of the forward pass.
    sequence: the parts of the sequence that attends to itself, in order.
    width: the model's attribute with the number of channels of a token.
    patch: the side of a patch in latent pixels, or the model's attribute that holds it, one for all sides
    or one for each.
    overridable: whether the host lets an override see the attention (overridden_attention.py).
    fused: whether it rotates in an operator without a backward pass (gradients/plain_kernels.py).
    """

    name: str
    stacks: tuple[Stack, ...]
    sequence: tuple[str, ...]
    width: str = "hidden_size"
    patch: str | int = "patch_size"
    overridable: bool = True
    fused: bool = False


DOUBLE_AND_SINGLE = (Stack("double", "double_blocks", image=0), Stack("single", "single_blocks", image=None))
TRANSFORMER_BLOCKS = (Stack("double", "transformer_blocks", image=1),)
SELF_AND_CROSS = (Stack("double", "blocks", None, "self_attn", "cross_attn"),)
LAYERS = (Stack("single", "layers", image=None),)
JOINT_MODELS: dict[str, JointModel | None] = {
    "comfy.ldm.modules.diffusionmodules.mmdit.MMDiT": JointModel(
        "Stable Diffusion 3", (Stack("double", "joint_blocks", image=1),), (PROMPT, IMAGE)
    ),
    "comfy.ldm.flux.model.Flux": JointModel("Flux", DOUBLE_AND_SINGLE, (PROMPT, IMAGE, REFERENCES)),
    "comfy.ldm.chroma.model.Chroma": JointModel("Chroma", DOUBLE_AND_SINGLE, (PROMPT, IMAGE, REFERENCES)),
    "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel": JointModel(
        "Qwen-Image", TRANSFORMER_BLOCKS, (PROMPT, IMAGE, REFERENCES), "inner_dim"
    ),
    "comfy.ldm.mage_flow.model.MageFlowTransformer2DModel": JointModel(
        "Mage-Flow", TRANSFORMER_BLOCKS, (PROMPT, IMAGE, REFERENCES), "inner_dim"
    ),
    "comfy.ldm.lumina.model.NextDiT": JointModel(
        "Lumina 2", (Stack("double", "layers", image=None),), (TEXTS, PROMPT, OTHER, IMAGE), "dim"
    ),
    "comfy.ldm.krea2.model.SingleStreamDiT": JointModel(
        "Krea 2",
        (Stack("single", "blocks", image=None),),
        (PROMPT, IMAGE, REFERENCES),
        "first.out_features",
        patch="patch",
    ),
    "comfy.ldm.cosmos.predict2.MiniTrainDIT": JointModel(
        "Cosmos-Predict2",
        SELF_AND_CROSS,
        (IMAGE,),
        "model_channels",
        patch="patch_spatial",
        fused=True,
    ),
    "comfy.ldm.wan.model.WanModel": JointModel("Wan", SELF_AND_CROSS, (IMAGE, REFERENCES), "dim"),
    "comfy.ldm.wan.model.SCAILWanModel": None,  # other images before and behind, of any number
    "comfy.ldm.wan.ar_model.CausalWanModel": None,  # any pass, an extra one too, fills its cache of keys
    "comfy.ldm.hidream.model.HiDreamImageTransformer2DModel": JointModel(
        "HiDream",
        (
            Stack("double", "double_stream_blocks", image=0),
            Stack("single", "single_stream_blocks", image=None),
        ),
        (IMAGE, PROMPT, OTHER),
        "inner_dim",
    ),
    "comfy.ldm.hunyuan_video.model.HunyuanVideo": JointModel(
        "Hunyuan Image", DOUBLE_AND_SINGLE, (PROMPT, OTHER, REFERENCES, IMAGE)
    ),
    "comfy.ldm.ideogram4.model.Ideogram4Transformer2DModel": JointModel(
        "Ideogram 4", LAYERS, (PROMPT, IMAGE), "input_proj.out_features", patch=1
    ),
    "comfy.ldm.ernie.model.ErnieImageModel": JointModel(
        "Ernie Image",
        (Stack("single", "layers", None, "self_attention"),),
        (IMAGE, PROMPT),
        overridable=False,
        fused=True,
    ),
    "comfy.ldm.pixart.pixartms.PixArtMS": JointModel(
        "PixArt", (Stack("double", "blocks", None, "attn", "cross_attn"),), (IMAGE,), overridable=False
    ),
    "comfy.ldm.hydit.models.HunYuanDiT": JointModel(
        "Hunyuan-DiT", (Stack("double", "blocks", None, "attn1", "attn2"),), (IMAGE,), overridable=False
    ),
    "comfy.ldm.aura.mmdit.MMDiT": JointModel(
        "AuraFlow",
        (Stack("double", "double_layers", image=1), Stack("single", "single_layers", image=None)),
        (OTHER, PROMPT, IMAGE),
        "init_x_linear.out_features",
    ),
    "comfy.ldm.kandinsky5.model.Kandinsky5": JointModel(
        "Kandinsky 5",
        (Stack("double", "visual_transformer_blocks", None, "self_attention", "cross_attention"),),
        (IMAGE,),
        "model_dim",
    ),
    "comfy.ldm.omnigen.omnigen2.OmniGen2Transformer2DModel": JointModel(
        "OmniGen 2", LAYERS, (PROMPT, REFERENCES, IMAGE)
    ),
    "comfy.ldm.boogu.model.BooguTransformer2DModel": JointModel(
        "Boogu",
        (
            Stack("double", "double_stream_layers", image=0),
            Stack("single", "single_stream_layers", image=None),
        ),
        (PROMPT, REFERENCES, IMAGE),
    ),
    "comfy.ldm.lens.model.LensTransformer2DModel": JointModel(
        "Lens", TRANSFORMER_BLOCKS, (IMAGE, PROMPT), "inner_dim", patch=1
    ),
    "comfy.ldm.joyimage.model.JoyImageTransformer3DModel": JointModel(
        "JoyImage",
        (Stack("double", "double_blocks", image=0),),
        (IMAGE, REFERENCES, PROMPT),
        "img_in.out_channels",
        fused=True,
    ),
    "comfy.ldm.pixeldit.model.PixDiT_T2I": JointModel(
        "PixelDiT", (Stack("double", "patch_blocks", image=0),), (PROMPT, IMAGE)
    ),
}


def joint_model(diffusion_model: torch.nn.Module) -> JointModel | None:
    """The family that a model belongs to, by its class or a base class of it."""
    model = getattr(diffusion_model, "_orig_mod", diffusion_model)  # as torch.compile wraps it
    names = (f"{base.__module__}.{base.__qualname__}" for base in type(model).__mro__)
    return next((JOINT_MODELS[name] for name in names if name in JOINT_MODELS), None)
