"""How much of what another node does in the sampler's pass is taken for Self-Attention Guidance."""

import torch

from inner_guidance.tests.support import tiny_models as tiny

# Blur, in latent pixels. The first changes a pixel by 4e-6 of its difference from its neighbours.
LITTLE, MUCH = 0.2, 2.0
MODEL_TYPES = {"small": "EPS", "flux": "FLUX", "sd3": "FLOW"}


def guidance_at_little_and_much_blur(kind, change):
    """The norms of the guidance of the first step at these blurs.

    change: a function that returns the model with another node behind it.
    """
    latent = torch.zeros(1, 4 if kind == "small" else 16, 16, 16)

    def denoised(guide):
        torch.manual_seed(0)
        return tiny.first_denoised(guide(change(tiny.patcher(kind, MODEL_TYPES[kind]))), latent=latent)

    plain = denoised(lambda model: model)
    return [
        float((denoised(lambda model, sigma=sigma: tiny.guided(model, blur_sigma=sigma)) - plain).norm())
        for sigma in (LITTLE, MUCH)
    ]
