"""How much of what another node does in the sampler's pass is taken for Self-Attention Guidance."""

from functools import partial

import torch

from inner_guidance.tests.support import tiny_models as tiny

# Blur, in latent pixels. The first changes a pixel by 4e-6 of its difference from its neighbours.
LITTLE, MUCH = 0.2, 2.0
MODEL_TYPES = {"small": "EPS", "flux": "FLUX", "sd3": "FLOW"}


def sampled_behind(kind, change, guide=lambda model: model):
    """The denoised result of the first step; change: what puts another node behind a model."""
    torch.manual_seed(0)
    model = guide(change(tiny.patcher(kind, MODEL_TYPES[kind])))
    return tiny.first_denoised(model, latent=torch.zeros(1, 4 if kind == "small" else 16, 16, 16))


def guidance_at_little_and_much_blur(kind, change):
    """The norms of the guidance of the first step at these blurs."""
    plain = sampled_behind(kind, change)
    return [
        float((sampled_behind(kind, change, partial(tiny.guided, blur_sigma=sigma)) - plain).norm())
        for sigma in (LITTLE, MUCH)
    ]
