"""The latents of the demo world as the host knows latent formats."""

from typing import Any

import comfy.latent_formats

# The linear preview, fitted by `python -m tools.run demo.train latents`.
LATENT_RGB = [
    [0.2610, 0.0096, -0.0643],
    [0.0018, 0.0467, 0.2858],
    [0.1394, 0.0704, 0.0717],
    [0.0139, 0.2399, 0.0670],
]
LATENT_RGB_BIAS = [0.0066, -0.0350, -0.0712]


class DemoLatent(comfy.latent_formats.LatentFormat):
    """Latents without a scale: the autoencoder is trained to unit variance."""

    latent_rgb_factors: Any = LATENT_RGB
    latent_rgb_factors_bias: Any = LATENT_RGB_BIAS
