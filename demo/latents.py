"""Encodes the renders once, so that the diffusion model trains on latents alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import convert_conv2d_weight_memory_format
from tqdm import tqdm

from .autoencoder import SceneAutoencoder
from .renders import shards, write_shard

BATCH = 10


@torch.inference_mode()
def encode_shards(
    renders: Path, latents: Path, autoencoder: dict[str, Tensor], scenes: int, device: str
) -> None:
    """Writes the latents (SHARD, 4, 32, 32) of shards of renders, in float16. Finished files are kept."""
    model = SceneAutoencoder()
    model.load_state_dict(autoencoder)
    convert_conv2d_weight_memory_format(model.to(device), torch.channels_last)
    latents.mkdir(parents=True, exist_ok=True)
    wanted = [path for path in shards(renders, "renders") if int(path.stem) < scenes]
    for path in tqdm(
        [path for path in wanted if not (latents / path.name).exists()], desc="encoding", unit="shard"
    ):
        pictures = torch.from_numpy(np.load(path)).permute(0, 3, 1, 2)
        encoded = []
        for batch in pictures.split(BATCH):
            x = (batch.to(device).float() / 127.5 - 1).to(memory_format=torch.channels_last)
            with torch.autocast(device, torch.bfloat16):
                encoded.append(model.encode(x).half().cpu())
        write_shard(latents / path.name, torch.cat(encoded).numpy())


def load_latents(folder: Path) -> tuple[list[int], Tensor]:
    """The seeds and their latents (N, 4, 32, 32), in float32."""
    paths = shards(folder, "latents")
    arrays = [np.load(path) for path in paths]
    seeds = [int(path.stem) + i for path, array in zip(paths, arrays, strict=True) for i in range(len(array))]
    return seeds, torch.from_numpy(np.concatenate(arrays)).float()


def linear_preview(renders: Path, latents: Path) -> Tensor:
    """(5, 3): factors of the four latent channels and a bias that give a latent pixel's colour in [-1, 1].

    A least-squares fit to the first shard, for the host's Latent2RGB previews.
    """
    start = shards(latents, "latents")[0].name
    pictures = torch.from_numpy(np.load(renders / start)).permute(0, 3, 1, 2).float() / 127.5 - 1
    colours = F.avg_pool2d(pictures, 8).permute(0, 2, 3, 1).reshape(-1, 3)
    channels = torch.from_numpy(np.load(latents / start)).float().permute(0, 2, 3, 1).reshape(-1, 4)
    return torch.linalg.lstsq(F.pad(channels, (0, 1), value=1.0), colours).solution
