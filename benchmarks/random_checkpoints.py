"""Model files of real size with random weights, in the layouts of the published files.

    python -m tools.run benchmarks.random_checkpoints [--sdxl] FOLDER

Names, shapes and layouts are the host's own: its classes on the meta device, and what it does to their
weights before it saves a checkpoint. A file that is there is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import comfy.ldm.depth_anything_3.model
import comfy.ops
import comfy.supported_models
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.supported_models_base import BASE
from torch import Tensor

from .models import SD15, SDXL

SD15_FILE = "checkpoints/v1-5-pruned-emaonly-fp16.safetensors"
SDXL_FILE = "checkpoints/sd_xl_base_1.0.safetensors"
DEPTH_ANYTHING_FILE = "geometry_estimation/depth_anything_3_mono_large.safetensors"
# The VAE of both.
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def main() -> None:
    """Write the files that FOLDER lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sdxl", action="store_true", help="SDXL (7 GB) instead of Stable Diffusion 1.5")
    options = parser.parse_args()
    layouts = {SD15_FILE: checkpoint(comfy.supported_models.SD15(dict(SD15)))}
    if options.sdxl:
        layouts = {SDXL_FILE: checkpoint(comfy.supported_models.SDXL(dict(SDXL)))}
    else:
        layouts[DEPTH_ANYTHING_FILE] = depth_anything()
    for name, shapes in layouts.items():
        path = options.folder / name
        if not path.is_file():
            size = sum(map(math.prod, shapes.values())) * torch.half.itemsize
            print(f"Writing {path.name}, {size / 1e9:.1f} GB of random weights ...", flush=True)
            write(path, shapes)


def checkpoint(config: BASE) -> dict[str, tuple[int, ...]]:
    """The names and shapes in a single-file checkpoint: the denoiser, the text encoder and the VAE."""
    unet = config.get_model({}, device="meta")
    text_encoder = config.clip_target().clip(device="meta")
    return shapes_of(
        unet.state_dict_for_saving(
            unet.diffusion_model.state_dict(), text_encoder.state_dict(), autoencoder().state_dict()
        )
    )


def autoencoder() -> AutoencoderKL:
    """The VAE of both checkpoints, without weights."""
    return AutoencoderKL(ddconfig=VAE, embed_dim=VAE["z_channels"]).to("meta")


def depth_anything() -> dict[str, tuple[int, ...]]:
    """The names and shapes of Depth Anything 3 Mono Large, the default of the host's class."""
    network = comfy.ldm.depth_anything_3.model.DepthAnything3Net(
        device="meta", operations=comfy.ops.disable_weight_init
    )
    return shapes_of(network.state_dict())


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of weights by name, without those that are numbers of positions."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items() if tensor.is_floating_point()}


def write(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of float16 weights, one tensor in memory at a time."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * torch.half.itemsize
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    generator = torch.Generator().manual_seed(0)
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            file.write(random_weight(name, shape, generator).numpy().data)
    os.replace(partial, path)


def random_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Weights that preserve the magnitude of activations, as float16."""
    if len(shape) > 1:
        return torch.randn(shape, generator=generator).div_(math.sqrt(math.prod(shape[1:]))).half()
    return torch.full(shape, float(not name.endswith("bias"))).half()
