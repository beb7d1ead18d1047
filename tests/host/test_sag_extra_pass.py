"""The extra pass of Self-Attention Guidance is the sampler's pass at another latent, beside any node.

A blur of 0.2 pixels changes next to nothing, so there must be next to no guidance. What another node does in
the sampler's pass, and does not do in the extra pass, would be taken for guidance.
"""

import comfy_extras.nodes_hypertile as hypertile
import comfy_extras.nodes_slg as slg
import comfy_extras.nodes_tomesd as tome
import pytest
import torch

from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.extra_pass import LITTLE, MUCH, guidance_at_little_and_much_blur
from inner_guidance.tests.support.tiny_models import first_denoised, result_of

pytestmark = pytest.mark.oldest_host


def nag(model):
    node = pytest.importorskip("comfy_extras.nodes_nag").NAGuidance
    return result_of(node.execute(model, 5.0, 0.5, 1.5))


def skipped_layers_in_the_negative(model):
    return result_of(slg.SkipLayerGuidanceDiTSimple.execute(model, 0.0, 1.0, "0"))


def random_function_wrapper(model):
    """As CADS: noise on the prompts of all rows."""

    def wrapper(apply_model, args):
        prompt = args["c"]["c_crossattn"]
        c = args["c"] | {"c_crossattn": prompt + 0.5 * torch.randn_like(prompt)}
        return apply_model(args["input"], args["timestep"], **c)

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


def mixed_evaluations(model):
    """A CALC_COND_BATCH wrapper in which the prompts' predictions depend on each other."""

    def wrapper(executor, *args):
        positive, negative = executor(*args)
        return [positive, negative.lerp(positive, 0.5)]

    model = model.clone()
    model.add_wrapper_with_key("calc_cond_batch", "mixed", wrapper)
    return model


BESIDE = {
    "NAG on Flux": ("flux", nag),
    "SkipLayerGuidanceDiTSimple on SD3": ("sd3", skipped_layers_in_the_negative),
    "ToMe": ("small", lambda model: result_of(tome.TomePatchModel.execute(model, 0.5))),
    "HyperTile": ("small", lambda model: result_of(hypertile.HyperTile.execute(model, 32, 4, 1, True))),
    "random numbers for all rows": ("small", random_function_wrapper),
    "mixed evaluations": ("small", mixed_evaluations),
}


@pytest.mark.parametrize(("kind", "change"), BESIDE.values(), ids=BESIDE)
def test_beside_nodes_that_look_at_both_prompts_or_draw_random_numbers(kind, change):
    little, much = guidance_at_little_and_much_blur(kind, change)
    assert little < 0.03 * much


def test_what_is_drawn_after_a_step_is_what_would_have_been_without_an_extra_pass():
    def following(guide):
        torch.manual_seed(0)
        first_denoised(guide(random_function_wrapper(tiny.patcher())))
        return torch.rand(3)

    assert torch.equal(following(tiny.guided), following(lambda model: model))


def test_two_lists_in_context_windows():
    """The host cuts the lists into windows: the extra pass is given them whole."""
    both = tiny.windowed(random_function_wrapper(tiny.patcher()))

    def denoised(model):
        torch.manual_seed(0)
        return first_denoised(model, latent=torch.zeros(5, 4, 16, 16))

    plain = denoised(both)
    little, much = (denoised(tiny.guided(both, blur_sigma=sigma)) - plain for sigma in (LITTLE, MUCH))
    assert little.norm() < 0.03 * much.norm()
