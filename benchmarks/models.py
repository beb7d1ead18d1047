"""Models of real size with random weights, built from the host's classes.

Time and memory do not depend on the values of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import comfy.model_base
import comfy.model_management
import comfy.supported_models
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..depth_head.architectures import LATENT
from ..depth_head.head import DepthHead
from ..depth_head.prior import DEFAULT_SIZE, DepthPrior
from ..host.depth.head_training import AUTO, new_network
from ..host.depth.heads import HostedDepthHead, latent_space, model_family
from ..host.depth.priors import make_unet

TOKENS = 77
POOLED = 1280  # of SDXL
PROMPT_WIDTHS = ("context_dim", "context_in_dim", "cap_feat_dim")

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
SDXL = SD15 | {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "context_dim": 2048,
    "num_heads": -1,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
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


# Flux is as wide as this, and has 19 and 38 blocks: more than many devices hold in float16.
FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 2,
    "depth_single_blocks": 4,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}


# Z-Image has 30 layers.
Z_IMAGE = {
    "image_model": "lumina2",
    "in_channels": 16,
    "patch_size": 2,
    "dim": 3840,
    "cap_feat_dim": 2560,
    "n_layers": 4,
    "n_heads": 30,
    "n_kv_heads": 30,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8.0 / 3.0,
    "qk_norm": True,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}


def sd15() -> ModelPatcher:
    """Stable Diffusion 1.5. At 512 px its latents are (B, 4, 64, 64)."""
    return hosted(comfy.supported_models.SD15(dict(SD15)))


def sdxl() -> ModelPatcher:
    """SDXL. At 1024 px its latents are (B, 4, 128, 128)."""
    return hosted(comfy.supported_models.SDXL(dict(SDXL)))


def sdxl_middle() -> ModelPatcher:
    """The middle block of SDXL as a UNet. For 2048 px its input is (B, 4, 64, 64)."""
    return hosted(
        comfy.supported_models.SDXL(dict(SDXL_MIDDLE)),
        lambda config, device: comfy.model_base.BaseModel(config, ModelType.EPS, device=device),
    )


def flux() -> ModelPatcher:
    """Flux with few blocks. At 1024 px its latents are (B, 16, 128, 128)."""
    return hosted(comfy.supported_models.Flux(dict(FLUX)))


def z_image() -> ModelPatcher:
    """Z-Image with few layers. At 1024 px its latents are (B, 16, 128, 128)."""
    return hosted(comfy.supported_models.ZImage(dict(Z_IMAGE)))


class RealSize(NamedTuple):
    """A model and the latents that it is measured at."""

    title: str
    model: Callable[[], ModelPatcher]
    latent: tuple[int, ...]


REAL_SIZES = {
    "sd15": RealSize("Stable Diffusion 1.5 at 512 px", sd15, (1, 4, 64, 64)),
    "sdxl": RealSize("SDXL at 1024 px", sdxl, (1, 4, 128, 128)),
    "sdxl_2048": RealSize("SDXL at 2048 px", sdxl, (1, 4, 256, 256)),
    "flux": RealSize("Flux with 2 of 19 and 4 of 38 blocks, at 1024 px", flux, (1, 16, 128, 128)),
    "z_image": RealSize("Z-Image with 4 of 30 layers, at 1024 px", z_image, (1, 16, 128, 128)),
}


def checkpoints_model(
    config: comfy.supported_models.supported_models_base.BASE, device: torch.device
) -> comfy.model_base.BaseModel:
    """The model that the host makes for a checkpoint of this configuration."""
    return config.get_model({}, device=device)


def hosted(
    config: comfy.supported_models.supported_models_base.BASE,
    make: Callable[..., comfy.model_base.BaseModel] = checkpoints_model,
) -> ModelPatcher:
    """A model as a loader node returns it: in half precision on a GPU, in float32 on the CPU."""
    device = comfy.model_management.get_torch_device()
    first, *_ = config.supported_inference_dtypes  # bfloat16 for transformers, float16 for UNets
    config.set_inference_dtype(torch.float32 if device.type == "cpu" else first, None)
    model = make(config, device)
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
            parameter.fill_(float(not name.endswith("bias")))


def prompt(model: ModelPatcher, seed: int) -> list[list[object]]:
    """A random conditioning in the form that CLIPTextEncode returns."""
    generator = torch.Generator().manual_seed(seed)
    config = model.model.model_config.unet_config
    (width,) = (config[name] for name in PROMPT_WIDTHS if name in config)
    pooled = config.get("vec_in_dim", POOLED)
    return [
        [
            torch.randn(1, TOKENS, width, generator=generator),
            {"pooled_output": torch.randn(1, pooled, generator=generator)},
        ]
    ]


def depth_head(model: ModelPatcher) -> HostedDepthHead:
    """The paper's head, on the default blocks of Train Depth Head."""
    network = new_network(model, "pixel_mlp", AUTO, AUTO, seed=0).requires_grad_(False).eval()
    return HostedDepthHead.of(DepthHead(network, model_family(model)))


def latent_head(model: ModelPatcher) -> HostedDepthHead:
    """A head that reads the model's latents."""
    network = new_network(model, LATENT, AUTO, AUTO, seed=0).requires_grad_(False).eval()
    return HostedDepthHead.of(DepthHead(network, latent_space(model)))


def depth_prior() -> DepthPrior:
    """A prior of the size that Train Depth Prior trains by default."""
    with torch.inference_mode(False):
        return DepthPrior(make_unet().requires_grad_(False).eval(), DEFAULT_SIZE)


def target_depth() -> Tensor:
    """A depth map as an IMAGE: near on the left."""
    return torch.linspace(1, 0, 512).expand(512, 512)[None, ..., None].expand(-1, -1, -1, 3)
