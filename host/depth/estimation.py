"""Depth of finished images: the head reads one truncated pass of the model on the slightly noised image."""

from typing import Any

import comfy.model_management
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...depth_head.architectures.latent import ESTIMATE
from ...depth_head.head import DepthHead
from ...pictures.images import as_rgb
from ..sampling.frozen_model import Conditioning, FrozenModel, require_prompt, with_frozen_model
from ..sampling.noise_levels import TIMES
from ..taps.uncompiled import refuse_uncontrollable_compiler
from .heads import HostedDepthHead, reads_latents, require_head_fits

LARGEST_BATCH = 16
# A latent head needs 1 kB for each of them; so many are LARGEST_BATCH images of 1024 x 1024 px, eightfold.
MOST_LATENT_PIXELS = LARGEST_BATCH * 128**2
# The host's own reserve over its estimate of a pass's memory.
RESERVE = 1.5
# Latent pixels of an image: a UNet halves both sides several times, and normalises what is left.
FEWEST_PIXELS = 6


def estimate_depth(
    model: ModelPatcher,
    hosted: HostedDepthHead,
    latents: Tensor,
    noise_level: float,
    ensemble: int,
    seed: int,
    positive: Conditioning | None = None,
) -> Tensor:
    """Relative inverse depth (B, 1, h, w), on the CPU, of latents (B, C, h, w) as VAEs give them.

    noise_level: time / 1000. Every image is read with the same `ensemble` noises, so the frames of a video
    agree and an image's depth does not depend on what else is in the batch. Raises ValueError as
    require_readable and image_latents do.
    """
    require_readable(model, hosted.head, positive)
    latents = image_latents(model, latents)
    if reads_latents(hosted.head):
        return depth_of_latents(model, hosted, latents)
    network = hosted.head.network
    names = network.branch_taps["strong"]
    generator = torch.Generator().manual_seed(seed)
    noises = torch.randn(ensemble, *latents.shape[1:], generator=generator)
    pairs = torch.cartesian_prod(torch.arange(len(latents)), torch.arange(ensemble)).view(-1, 2)
    batch = largest_batch(model, latents.shape, len(pairs))

    def work(frozen: FrozenModel) -> Tensor:
        progress = comfy.utils.ProgressBar(len(pairs))
        total = torch.zeros(len(latents), 1, *latents.shape[-2:])
        for part in pairs.split(batch):
            comfy.model_management.throw_exception_if_processing_interrupted()
            rows, numbers = part.T
            time = torch.full((len(part),), noise_level * TIMES, device=frozen.device)
            found = frozen.features(names, latents[rows], noises[numbers], time)
            features = {name: feature.to(hosted.device) for name, feature in found.items()}
            depth = network(features, time.to(hosted.device), latents.shape[-2:])
            total.index_add_(0, rows, depth.cpu())
            progress.update(len(part))
        return total / ensemble

    return with_frozen_model(model, positive, (batch, *latents.shape[1:]), work, [hosted.patcher])


def require_readable(model: ModelPatcher, head: DepthHead, positive: Conditioning | None) -> None:
    """Raises ValueError for a head of another model, a prompt that is missing, and a compiled model."""
    require_head_fits(head, model)
    if not reads_latents(head):
        require_prompt(model, positive)
        refuse_uncontrollable_compiler(model, "Depth Estimate")


@torch.inference_mode(False)
@torch.no_grad()
def depth_of_latents(model: ModelPatcher, hosted: HostedDepthHead, latents: Tensor) -> Tensor:
    """The same by a latent head: it reads finished latents as they are, and the model is not evaluated."""
    comfy.model_management.load_models_gpu([hosted.patcher])
    device, network = hosted.device, hosted.head.network
    x0 = as_sampled(model, latents)
    progress, depth = comfy.utils.ProgressBar(len(x0)), []
    for part in x0.split(max(1, min(LARGEST_BATCH, MOST_LATENT_PIXELS // x0[0, 0].numel()))):
        comfy.model_management.throw_exception_if_processing_interrupted()
        at_zero = torch.zeros(len(part), device=device)
        depth.append(network({ESTIMATE: part.to(device)}, at_zero, x0.shape[-2:]).cpu())
        progress.update(len(part))
    return torch.cat(depth)


def as_sampled(model: ModelPatcher, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) in float32 as samplers have them, of latents as VAEs give them.

    Those of a video VAE may have an axis for their one frame.
    """
    latent_format: Any = model.get_model_object("latent_format")
    if latent_format.latent_dimensions == 3 and latents.ndim == 4:
        latents = latents.unsqueeze(2)
    x0 = latent_format.process_in(latents.float())
    return x0.squeeze(2) if x0.ndim == 5 else x0


def image_latents(model: ModelPatcher, latents: Tensor) -> Tensor:
    """Latents of images (B, C, h, w), as this model takes them: (B, C, 1, h, w) for models of videos.

    Raises ValueError for latents of another model or of a video, too small ones, numbers that are not finite
    and an empty batch.
    """
    if latents.is_nested:
        raise ValueError(
            "The latent holds a video and its sound: depth is read from images, so use a latent of one frame."
        )
    require_some(latents)
    if not latents.isfinite().all():
        raise ValueError(
            "The latent has values that are not finite: check the image, and the precision of the VAE or of "
            "the model that made it."
        )
    latent_format = model.model.latent_format
    channels = latent_format.latent_channels
    of_video = latent_format.latent_dimensions == 3
    if of_video and latents.ndim == 5 and latents.shape[2] > 1:
        raise ValueError(
            f"The latent is a video of {latents.shape[2]} frames: depth is read from images, so use a latent "
            "of one frame."
        )
    if latents.ndim not in ((4, 5) if of_video else (4,)) or latents.shape[1] != channels:
        raise ValueError(
            f"The latent is {' x '.join(map(str, latents.shape))}, but this model needs images of {channels} "
            "channels: encode the image with the model's own VAE."
        )
    if latents.shape[-1] * latents.shape[-2] < FEWEST_PIXELS:
        least = 4 * pixels_per_latent(model)
        raise ValueError(
            f"The latent is {latents.shape[-1]} x {latents.shape[-2]}, too small to read depth from: use "
            f"images of at least {least} x {least} pixels."
        )
    return latents.unsqueeze(2) if of_video and latents.ndim == 4 else latents


def require_some(batch: Tensor) -> None:
    """Raises ValueError for an empty batch."""
    if batch.numel() == 0:
        raise ValueError("The batch of images is empty: connect at least one image.")


def pixels_per_latent(model: ModelPatcher) -> int:
    """Image pixels per latent pixel, along one side. ComfyUI 0.9.2 does not say; there it is 8."""
    return getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", 8)


def largest_batch(model: ModelPatcher, shape: torch.Size, wanted: int) -> int:
    """How many rows of a shape fit into memory at once, by the host's own estimate."""
    free = comfy.model_management.get_free_memory(model.load_device)
    one = RESERVE * model.model.memory_required([1, *shape[1:]])
    return max(1, min(wanted, LARGEST_BATCH, int(free / one)))


def encode_whole(model: ModelPatcher, vae: Any, images: Tensor) -> Tensor:
    """Latents of images (B, H, W, C) of any size, one after the other.

    An image whose size is no multiple of the VAE's blocks is resized, because the VAE would crop it. Raises
    ValueError, at the first, as image_latents does.
    """
    require_some(images)
    block = vae.spacial_compression_encode()
    size = [max(1, round(side / block)) * block for side in images.shape[1:3]]
    pixels = as_rgb(images).movedim(-1, 1)
    if list(pixels.shape[-2:]) != size:
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    latents: list[Tensor] = []
    for picture in pixels.movedim(1, -1).split(1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        latents.append(image_latents(model, vae.encode(picture).cpu()))
    return torch.cat(latents)
