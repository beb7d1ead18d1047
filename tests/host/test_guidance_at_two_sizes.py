"""Guidance that is reused (every_n_steps) in samplers that evaluate the latent at two sizes within a step."""

import itertools

import comfy.samplers
import pytest
import torch

from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny

pytestmark = pytest.mark.oldest_host


@torch.no_grad()
def euler_at_two_sizes(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """As Euler SMEA Dyn: after each step but the last, another at half the size, put back into the latent."""
    for sigma, following in itertools.pairwise(sigmas):
        denoised = model(x, sigma * x.new_ones([x.shape[0]]), **extra_args)
        x = x + (x - denoised) / sigma * (following - sigma)
        if following > 0:
            half = x[..., ::2, ::2].clone()
            denoised = model(half, sigma * x.new_ones([x.shape[0]]), **extra_args)
            x[..., ::2, ::2] = half + (half - denoised) / sigma * (following - sigma)
    return x


def sample(model, steps=5):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny.prompt(0), tiny.prompt(1))
    guider.set_cfg(4.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", steps)
    latent = torch.zeros(1, 4, 16, 16)
    sampler = comfy.samplers.KSAMPLER(euler_at_two_sizes)
    return guider.sample(tiny.noise(), latent, sampler, sigmas, disable_pbar=True, seed=0)


GUIDED = {"SAG": tiny.guided, "DAG": depth.depth_guided}


@pytest.mark.parametrize("guided", GUIDED.values(), ids=GUIDED)
def test_every_size_reuses_its_own_guidance(guided):
    model = tiny.patcher()
    seen = {"every step": [], "every second": []}
    images = {}
    for name, n in (("every step", 1), ("every second", 2)):
        clone = guided(model, every_n_steps=n)
        clone.set_model_sampler_post_cfg_function(
            lambda args, name=name: (
                seen[name].append(
                    (
                        args["input"].shape[-1],
                        args["denoised"]
                        - (args["uncond_denoised"] + 4.0 * (args["cond_denoised"] - args["uncond_denoised"])),
                    )
                )
                or args["denoised"]
            )
        )
        images[name] = sample(clone)

    assert images["every second"].isfinite().all()
    assert [size for size, _ in seen["every second"]] == [16, 8] * 4 + [16]
    assert all(shift.norm() > 0 for _, shift in seen["every second"])
    first, of_half = seen["every second"][0][1], seen["every second"][1][1]
    assert torch.equal(first, seen["every step"][0][1])
    for size, start in ((16, first), (8, of_half)):
        reused = next(shift for s, shift in seen["every second"][2:] if s == size)
        cosine = torch.cosine_similarity(reused.flatten(), start.flatten(), dim=0)
        assert cosine > 1 - 1e-5
