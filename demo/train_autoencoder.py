"""Trains the demo model's autoencoder on crops of renders.

With train_encoder=False only the decoder is trained, and a diffusion model that was trained on the latents
remains valid.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import convert_conv2d_weight_memory_format
from tqdm import tqdm

from .autoencoder import SceneAutoencoder
from .progress import Training
from .renders import shards

CROP = 128
BATCH = 12
SHARDS = 16
"""Shards of renders in memory, 50 MB each."""
LEARNING_RATE = 1e-3
LATENT_NOISE = 0.03
"""Standard deviation of the noise on training latents: the decoder must tolerate what a sampler leaves."""
AVERAGE_DECAY = 0.995
CHECKPOINT_MINUTES = 2.0


def train_autoencoder(
    renders: Path, checkpoint: Path, minutes: float, device: str, train_encoder: bool = True
) -> dict[str, Tensor]:
    """Trains for `minutes`, earlier calls included; returns the averaged weights.

    A term of the loss pulls every channel of the latents to mean 0 and standard deviation 1, so that the
    latent format needs no scale.
    """
    pictures = [np.load(path) for path in shards(renders, "renders")[:SHARDS]]

    model = convert_conv2d_weight_memory_format(SceneAutoencoder().to(device), torch.channels_last)
    model.encoder.requires_grad_(train_encoder)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    stage = "autoencoder" if train_encoder else "decoder"
    training = Training(stage, model, [optimiser], checkpoint, minutes)
    budget = training.budget
    rng = np.random.default_rng(training.step)
    smooth = None
    bar = tqdm(desc=stage, unit="step", initial=training.step)
    while budget.fraction < 1:
        x = _crops(pictures, rng).to(device, memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            z = model.encode(x).float()
            y = model.decode(z + LATENT_NOISE * torch.randn_like(z)).float()
        loss = reconstruction_loss(y, x)
        if train_encoder:
            mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
            loss = loss + 0.01 * (mean.square() + std.log().square()).mean()
        training.learn(loss, budget.rate(LEARNING_RATE, training.step, warm_up=50), AVERAGE_DECAY)
        bar.update()
        psnr = 10 * torch.log10(4 / F.mse_loss(y, x)).item()
        smooth = psnr if smooth is None else 0.98 * smooth + 0.02 * psnr
        if training.step % 20 == 0:
            bar.set_postfix(psnr=f"{smooth:.2f}", left=f"{minutes - budget.elapsed:.1f} min")
        training.save_every(CHECKPOINT_MINUTES)
    return training.average


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1 + 2 x squared error + L1 of the horizontal and vertical differences."""
    gradients = F.l1_loss(y.diff(dim=-1), x.diff(dim=-1)) + F.l1_loss(y.diff(dim=-2), x.diff(dim=-2))
    return F.l1_loss(y, x) + 2 * F.mse_loss(y, x) + gradients


def _crops(pictures: list[np.ndarray], rng: np.random.Generator) -> Tensor:
    """(BATCH, 3, CROP, CROP) random crops in [-1, 1], half of them mirrored."""
    crops = []
    for _ in range(BATCH):
        shard = pictures[rng.integers(len(pictures))]
        picture = shard[rng.integers(len(shard))]
        top, left = rng.integers(0, picture.shape[0] - CROP + 1, 2)
        crop = picture[top : top + CROP, left : left + CROP]
        crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
