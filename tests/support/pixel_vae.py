"""What a VAE is to the training nodes, without weights."""

import torch


class PixelVAE:
    """Latents are the colours, and their mean, of an eighth of the resolution."""

    def vae_encode_crop_pixels(self, pixels):
        return pixels

    def encode(self, pixels):
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8) * 2 - 1
        return torch.cat([small, small.mean(1, keepdim=True)], dim=1)
