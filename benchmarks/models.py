"""Models of real size with random weights, built from the host's classes.

Time and memory do not depend on the values of the weights.
"""

from __future__ import annotations

import math

import comfy.model_base
import comfy.model_management
import comfy.supported_models
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..depth_head.architectures.pixel_mlp import PixelMLP
from ..depth_head.head import DepthHead, middle_blocks
from ..depth_head.prior import DEFAULT_SIZE, DepthPrior
from ..host.depth.heads import HostedDepthHead, feature_channels, model_family
from ..host.depth.priors import make_unet

TOKENS = 77

SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "adm_in_channels": None,
    "legacy": False,
}
# Only the middle block of SDXL, where Self-Attention Guidance reads the first transformer.
SDXL_MIDDLE = SD15 | {
    "model_channels": 1280,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [0],
    "transformer_depth_output": [0, 0],
    "context_dim": 2048,
    "num_heads": -1,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
}


def sd15() -> ModelPatcher:
    """Stable Diffusion 1.5. At 512 px its latents are (B, 4, 64, 64)."""
    return hosted(comfy.supported_models.SD15(dict(SD15)))


def sdxl_middle() -> ModelPatcher:
    """The middle block of SDXL as a UNet. For 2048 px its input is (B, 4, 64, 64)."""
    return hosted(comfy.supported_models.SDXL(dict(SDXL_MIDDLE)))


def hosted(config: comfy.supported_models.supported_models_base.BASE) -> ModelPatcher:
    """A model as a loader node returns it: float16 on a GPU, float32 on the CPU."""
    device = comfy.model_management.get_torch_device()
    config.set_inference_dtype(torch.float32 if device.type == "cpu" else torch.float16, None)
    model = comfy.model_base.BaseModel(config, ModelType.EPS, device=device)
    initialise(model.diffusion_model)
    return ModelPatcher(
        model, load_device=device, offload_device=comfy.model_management.unet_offload_device()
    )


def initialise(network: nn.Module) -> None:
    """Set weights that preserve the magnitude of activations; the host does not initialise them."""
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=1 / math.sqrt(math.prod(parameter.shape[1:])))
        else:
            parameter.fill_(float(name.endswith("weight")))


def prompt(model: ModelPatcher, seed: int) -> list[list[object]]:
    """A random conditioning in the form that CLIPTextEncode returns."""
    generator = torch.Generator().manual_seed(seed)
    width = model.model.model_config.unet_config["context_dim"]
    return [[torch.randn(1, TOKENS, width, generator=generator), {}]]


def depth_head(model: ModelPatcher) -> HostedDepthHead:
    """The paper's head, on the default blocks of Train Depth Head."""
    channels = feature_channels(model.get_model_object("diffusion_model"))
    strong, weak = middle_blocks(sum(name[0] == "o" for name in channels))
    with torch.inference_mode(False):
        taps = {f"o{i}": channels[f"o{i}"] for i in strong}
        network = PixelMLP(taps, list(taps), [f"o{weak}"]).requires_grad_(False).eval()
    return HostedDepthHead.of(DepthHead(network, model_family(model)))


def depth_prior() -> DepthPrior:
    """A prior of the size that Train Depth Prior trains by default."""
    with torch.inference_mode(False):
        return DepthPrior(make_unet().requires_grad_(False).eval(), DEFAULT_SIZE)


def target_depth() -> Tensor:
    """A depth map as an IMAGE: near on the left."""
    return torch.linspace(1, 0, 512).expand(512, 512)[None, ..., None].expand(-1, -1, -1, 3)
