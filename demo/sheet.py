"""Draws prompts with the demo model through the host's sampler; puts pictures on a sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from PIL import Image
from torch import Tensor


@torch.inference_mode()
def draw(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    prompts: list[str],
    seed: int,
    steps: int = 20,
    cfg: float = 3.0,
    sampler: str = "dpmpp_2m",
    scheduler: str = "karras",
) -> Tensor:
    """One picture per prompt, in one batch: (N, 256, 256, 3) in [0, 1]."""
    latent = torch.zeros(len(prompts), 4, 32, 32, device=comfy.model_management.intermediate_device())
    drawn = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latent, seed),
        steps,
        cfg,
        sampler,
        scheduler,
        conditioning(clip, prompts),
        conditioning(clip, [""]),
        latent,
        seed=seed,
        disable_pbar=True,
    )
    return vae.decode(drawn)


def conditioning(clip: CLIP, prompts: Sequence[str]) -> list[list[Any]]:
    """A conditioning with one prompt for each picture of a batch, or one for all."""
    return [[torch.cat([clip.encode_from_tokens(clip.tokenize(prompt)) for prompt in prompts]), {}]]


def decode(vae: VAE, latents: Tensor) -> Tensor:
    """Pictures (N, 256, 256, 3) in uint8."""
    return pictures_to_uint8(vae.decode(latents))


def pictures_to_uint8(pictures: Tensor) -> Tensor:
    """Pictures of any shape in [0, 1] to uint8, on the CPU."""
    return (pictures.cpu() * 255).round().clamp(0, 255).to(torch.uint8)


def save_sheet(pictures: Tensor, path: Path, columns: int) -> None:
    """Writes pictures (N, H, W, 3) in [0, 1] to an image file, `columns` in each row."""
    _, height, width, _ = pictures.shape
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for number, picture in enumerate(pictures):
        tile = Image.fromarray(pictures_to_uint8(picture).numpy())
        sheet.paste(tile, (number % columns * width, number // columns * height))
    sheet.save(path)
