"""A strength of Depth-Aware Guidance moves the latent alike in samplers that renoise the whole estimate."""

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


def first_step(model, sampler):
    """The sigmas of the first step and the next, the denoised estimate there, and x after the step."""
    seen = []
    schedule = tiny.watch(model)
    tiny.sample(
        model, steps=3, sampler=sampler, callback=lambda i, x0, x, _: seen.append((x0.double(), x.double()))
    )
    sigmas = schedule.passes[0].transformer_options["sample_sigmas"]
    return sigmas[:2].tolist(), seen[0][0], seen[1][1]


@pytest.mark.parametrize("sampler", LIKE_EULER)
def test_a_step_moves_the_latent_as_eulers_does(sampler):
    (sigma, sigma_next), plain_x0, plain_x = first_step(tiny.patcher(), "euler")
    _, guided_x0, guided_x = first_step(depth.depth_guided(tiny.patcher()), "euler")
    shift = (1 - sigma_next / sigma) * (guided_x0 - plain_x0)
    torch.testing.assert_close(guided_x - plain_x, shift, rtol=1e-3, atol=1e-4)
    assert shift.abs().max() > 1e-2

    _, _, plain_x = first_step(tiny.patcher(), sampler)
    _, _, guided_x = first_step(depth.depth_guided(tiny.patcher()), sampler)

    torch.testing.assert_close(guided_x - plain_x, shift, rtol=1e-3, atol=1e-3)


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
