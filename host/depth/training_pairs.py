"""Labelled images for training a depth head: latents of the images, labels at their size."""

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...pictures.images import FROM_A_LIST, as_rgb, require_finite, require_images
from .estimation import image_latents

SAME_SHAPE = 0.02  # relative difference of the aspects of an image and its depth map


def require_pairs(images: Tensor, depths: Tensor) -> None:
    """Raises ValueError unless there are at least two images, each with a depth map of the same aspect."""
    if len(images) != len(depths):
        raise ValueError(
            f"There are {len(images)} images but {len(depths)} depth maps: connect a depth map for every "
            "image, in the same order." + (f" {FROM_A_LIST}" if 1 in (len(images), len(depths)) else "")
        )
    if len(images) < 2:
        raise ValueError(
            "A depth head needs at least two images with depth maps, one to learn from and one to judge by; "
            f"use 50 to 100; ten are not enough. {FROM_A_LIST}"
        )
    if images.numel() == 0 or depths.numel() == 0:
        raise ValueError("The images or the depth maps have no pixels: check the nodes that make them.")
    require_images(images, "images")
    require_finite(images, "images")
    require_images(depths, "depths")
    aspect, label_aspect = (t.shape[2] / t.shape[1] for t in (images, depths))
    if abs(label_aspect / aspect - 1) > SAME_SHAPE:
        raise ValueError(
            f"The images are {images.shape[2]} x {images.shape[1]}, the depth maps {depths.shape[2]} x "
            f"{depths.shape[1]}: use depth maps of the same aspect ratio. Their resolution may differ."
        )


def require_depth(labels: Tensor) -> None:
    """Raises ValueError if the part of the depth maps that the VAE encodes is uniform."""
    if labels.std() < 1e-3:
        raise ValueError("The depth maps have a single grey value: connect depth maps, near = white.")


def encode(model: ModelPatcher, vae: Any, images: Tensor, progress: comfy.utils.ProgressBar) -> Tensor:
    """Latents (N, C, h, w), or (N, C, 1, h, w), of images, one after the other.

    Raises ValueError, at the first, for images that are too small and for a VAE of another model.
    """
    if 0 in vae.vae_encode_crop_pixels(as_rgb(images[:1])).shape:
        raise ValueError(
            f"The images are {images.shape[2]} x {images.shape[1]}, less than the VAE can encode: use larger "
            "ones."
        )
    latents: list[Tensor] = []
    for image in images.split(1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        latents.append(image_latents(model, vae.encode(as_rgb(image)).cpu()))
        progress.update(1)
    return torch.cat(latents)


def labels_for(vae: Any, depth: Tensor, images: Tensor, size: Sequence[int]) -> Tensor:
    """Depth maps (N, 1, h, w) as labels (N, 1, *size): of the part of the images that the VAE encodes."""
    mode = "area" if depth.shape[-1] >= images.shape[2] else "bilinear"
    depth = F.interpolate(depth, images.shape[1:3], mode=mode)
    cropped = vae.vae_encode_crop_pixels(depth.expand(-1, 3, -1, -1).movedim(1, -1))[..., :1].movedim(-1, 1)
    return F.interpolate(cropped, tuple(size), mode="area").clamp(0, 1)


def noise_of(latents: Tensor, seeds: Tensor) -> Tensor:
    """Standard normal noise for latents (B, ...), each from its seed, the same on every device."""
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    return torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators])


def shares_of(seeds: Tensor) -> Tensor:
    """Numbers (B, 2) from 0 to 1, a pair from each seed, independent of its noise."""
    generators = [torch.Generator().manual_seed(int(seed) ^ 1) for seed in seeds]
    return torch.stack([torch.rand(2, generator=generator) for generator in generators])
