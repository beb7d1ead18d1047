"""A strength of Depth-Aware Guidance moves the latent alike in samplers that renoise the whole estimate."""

import comfy.k_diffusion.sampling
import comfy.sample
import comfy.samplers
import pytest
import torch

from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny

pytestmark = pytest.mark.oldest_host

# Each step is x_next = r x + (1 - r) D(x) plus what does not depend on a shift of D, r = sigma_next / sigma.
LIKE_EULER = (
    "dpmpp_2m",
    "res_multistep",
    "euler_cfg_pp",
    "dpmpp_2m_cfg_pp",
    "res_multistep_cfg_pp",
    "gradient_estimation_cfg_pp",
    "lcm",
)
# Of a flow model the next x holds 1 - sigma_next of the estimate, where another model's holds all of it.
LIKE_EULER_IN_FLOW = ("res_multistep", "euler_cfg_pp", "gradient_estimation_cfg_pp", "lcm")


def first_step(model, sampler):
    """The sigmas of the first step and the next, the denoised estimate there, and x after the step."""
    seen = []
    schedule = tiny.watch(model)
    tiny.sample(
        model, steps=3, sampler=sampler, callback=lambda i, x0, x, _: seen.append((x0.double(), x.double()))
    )
    sigmas = schedule.passes[0].transformer_options["sample_sigmas"]
    return sigmas[:2].tolist(), seen[0][0], seen[1][1]


@pytest.mark.parametrize(
    ("sampler", "model_type"),
    [*((name, "EPS") for name in LIKE_EULER), *((name, "FLOW") for name in LIKE_EULER_IN_FLOW)],
)
def test_a_step_moves_the_latent_as_eulers_does(sampler, model_type):
    plain = tiny.patcher(model_type=model_type)
    guided = depth.depth_guided(plain)
    (sigma, sigma_next), plain_x0, plain_x = first_step(plain, "euler")
    _, guided_x0, guided_x = first_step(guided, "euler")
    shift = (1 - sigma_next / sigma) * (guided_x0 - plain_x0)
    torch.testing.assert_close(guided_x - plain_x, shift, rtol=1e-3, atol=1e-4)
    assert shift.abs().max() > 1e-2

    _, _, plain_x = first_step(plain, sampler)
    _, _, guided_x = first_step(guided, sampler)

    torch.testing.assert_close(guided_x - plain_x, shift, rtol=1e-3, atol=1e-3)


def test_lcm_takes_nothing_where_the_noise_of_a_flow_model_rises():
    """Towards sigma 1 the next x holds ever less of the estimate, so its share of a shift would explode."""
    plain = tiny.patcher(model_type="FLOW")
    latent, prompts = tiny.noise(seed=3), (tiny.prompt(0), tiny.prompt(1))
    sampler, rising = comfy.samplers.sampler_object("lcm"), torch.tensor([0.5, 0.9, 0.99])

    def sampled(model):
        given = (model, torch.zeros_like(latent), 4.0, sampler, rising, *prompts, latent)
        return comfy.sample.sample_custom(*given, disable_pbar=True, seed=0)

    guided, expected = sampled(depth.depth_guided(plain)), sampled(plain)
    assert (guided - expected).norm() < 1e-4 * expected.norm()  # the halves are evaluated apart


@pytest.mark.skipif(
    not hasattr(comfy.k_diffusion.sampling, "sample_ar_video"), reason="this host has no SamplerARVideo"
)
def test_each_frame_of_an_autoregressive_video_is_shifted_by_eulers_share(monkeypatch):
    """By a latent head; heads of features are refused on its models, whose caches are empty here."""
    plain = tiny.patcher("qwen", "FLUX")
    for caches in ("init_kv_caches", "init_crossattn_caches"):
        monkeypatch.setattr(plain.model.diffusion_model, caches, lambda *args: [], raising=False)
    steered = {"target_depth": depth.target(), "consistency_scale": 0.0, "target_end_percent": 1.0}
    guided = depth.depth_guided(plain, depth_head=depth.latent_head(plain), **steered)
    noise = tiny.noise(1, 16, 2, 16, 16)
    latent = torch.zeros_like(noise)
    sigmas = torch.tensor([0.9, 0.6, 0.3, 0.0])

    def first_estimates(model, sampler, noise, latent):
        """The denoised estimate of the first step of each frame."""
        guider, found = comfy.samplers.CFGGuider(model), []
        guider.set_conds(tiny.prompt(0), tiny.prompt(1))
        guider.set_cfg(4.0)
        guider.sample(
            noise,
            latent,
            comfy.samplers.ksampler(sampler),
            sigmas,
            callback=lambda i, x0, x, total: found.append(x0.clone()),
            disable_pbar=True,
            seed=0,
        )
        return found[::3]

    plain_frames, frames = (first_estimates(m, "ar_video", noise, latent) for m in (plain, guided))
    for frame in range(2):
        alone = noise[:, :, frame : frame + 1], latent[:, :, :1]
        (before,), (after,) = (first_estimates(m, "euler", *alone) for m in (plain, guided))
        assert torch.equal(plain_frames[frame], before)
        shift = (1 - 0.6 / 0.9) / (1 - 0.6) * (after - before)  # the next x holds 1 - 0.6 of it
        assert shift.abs().max() > 1e-2
        torch.testing.assert_close(frames[frame] - before, shift, rtol=1e-3, atol=1e-4)


def test_other_nodes_post_cfg_functions_find_the_prediction_as_it_is():
    """Only the sampler's own function gets the shifted estimate: PAG and SLG take differences of it."""

    def estimates(model):
        """Of the negative, as another node finds it, and the denoised result."""
        found = []

        def look(args):
            found.append(args["uncond_denoised"].clone())
            return args["denoised"]

        model.set_model_sampler_post_cfg_function(look)
        denoised = tiny.first_denoised(model, sampler="euler_cfg_pp")
        return found[0], denoised

    negative, plain = estimates(tiny.patcher())
    found, guided = estimates(depth.depth_guided(tiny.patcher()))

    # Not to the bit: the guided pass evaluates the halves of the batch apart.
    assert (found - negative).abs().max() < 0.01 * (guided - plain).abs().max()
