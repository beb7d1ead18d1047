"""The demo model's autoencoder: pictures (B, 3, 8h, 8w) in [-1, 1] to latents (B, 4, h, w) of unit variance.

Almost all layers run at a quarter of the picture's resolution or below, between pixel (un)shuffles, so that
it trains on a CPU. It costs a seventh of TAESD, the host's small autoencoder.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from torch import Tensor, nn

LATENT_CHANNELS = 4
FINE, COARSE, FULL = 64, 128, 16
"""Channels at a quarter and an eighth of the picture's resolution, and of the last layer at the full one."""

STAND_IN = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True,
        "z_channels": 4,
        "resolution": 8,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), without normalisation: colours are absolute."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The output has the same shape."""
        return x + self.convs(x)


class SceneAutoencoder(nn.Module):
    """Encoder and decoder, with the two methods that the host's VAE calls."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(3 * 16, FINE, 3, padding=1),
            *(ResidualBlock(FINE) for _ in range(2)),
            nn.Conv2d(FINE, COARSE, 3, stride=2, padding=1),
            *(ResidualBlock(COARSE) for _ in range(3)),
            nn.Conv2d(COARSE, LATENT_CHANNELS, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, COARSE, 3, padding=1),
            *(ResidualBlock(COARSE) for _ in range(4)),
            nn.Conv2d(COARSE, 4 * FINE, 1),
            nn.PixelShuffle(2),
            *(ResidualBlock(FINE) for _ in range(3)),
            nn.Conv2d(FINE, 16 * FULL, 3, padding=1),
            nn.PixelShuffle(4),
            nn.SiLU(),
            nn.Conv2d(FULL, 3, 3, padding=1),
        )

    def encode(self, x: Tensor) -> Tensor:
        """(B, 3, 8h, 8w) in [-1, 1] -> (B, 4, h, w)."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, 3, 8h, 8w). Latents are softly limited to 4 standard deviations."""
        return self.decoder(torch.tanh(z / 4) * 4)


class DemoVAE(comfy.sd.VAE):
    """The host's VAE with a SceneAutoencoder.

    The host builds only autoencoders that it knows. So its constructor builds a tiny one, which this class
    then replaces.
    """

    first_stage_model: Any

    def __init__(self, state_dict: dict[str, Tensor]) -> None:
        super().__init__(sd=AutoencoderKL(**STAND_IN).state_dict(), config={"params": STAND_IN})
        self.first_stage_model = SceneAutoencoder().eval().requires_grad_(False)
        self.first_stage_model.load_state_dict(state_dict)
        self.first_stage_model.to(self.vae_dtype)
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model,
            load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device(),
        )
        self.size = comfy.model_management.module_size(self.first_stage_model)
