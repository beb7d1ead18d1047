"""Self-Attention Guidance beside other guidances, guiders, CFG functions and samplers: the effects add up."""

import comfy.samplers
import comfy_extras.nodes_apg as apg
import comfy_extras.nodes_mahiro as mahiro
import comfy_extras.nodes_pag as pag
import comfy_extras.nodes_perpneg as perpneg
import comfy_extras.nodes_sag as host_sag
import comfy_extras.nodes_tcfg as tcfg
import pytest
import torch

from inner_guidance.host.keys import TAG
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.sag_reference import guidance_between, guidance_of
from inner_guidance.tests.support.tiny_models import first_denoised, result_of

pytestmark = pytest.mark.oldest_host


def with_pag(model):
    return result_of(pag.PerturbedAttentionGuidance.execute(model, 3.0))


def with_perp_neg_node(model):
    return result_of(perpneg.PerpNeg.execute(model, tiny.prompt(9), 1.0))


ADDED = {"PAG": with_pag, "PerpNeg node": with_perp_neg_node}


@pytest.mark.parametrize("sag_first", [True, False], ids=["sag-first", "sag-last"])
@pytest.mark.parametrize("other", ADDED)
def test_guidances_add_up(other, sag_first):
    attach = ADDED[other]
    plain, other_alone, sag_alone = (
        first_denoised(model)
        for model in (tiny.patcher(), attach(tiny.patcher()), tiny.guided(tiny.patcher()))
    )

    model = tiny.patcher()
    both = first_denoised(attach(tiny.guided(model)) if sag_first else tiny.guided(attach(model)))

    assert (other_alone - plain).abs().max() > 1
    tiny.assert_steered(sag_alone, plain)
    torch.testing.assert_close(both - other_alone, sag_alone - plain, rtol=1e-4, atol=5e-3)


def test_beside_the_hosts_own_sag():
    """Its replacement, in the block that we read, makes no call of the host's attention."""
    model = tiny.patcher()
    seen = tiny.watch(model)
    hosts = result_of(host_sag.SelfAttentionGuidance.execute(model, 0.4, 1.3))

    both = first_denoised(tiny.guided(hosts))

    assert seen.labels == [[1, 0], [1, 0], [0]]
    sampler, _, theirs = seen.passes
    uncond, cond = sampler.out.double().chunk(2)
    hosts_guidance = 0.4 * (theirs.x - sampler.x[:1] + uncond - theirs.out)
    expected = uncond + 4 * (cond - uncond) + guidance_of(seen) + hosts_guidance
    torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("mask", ["attention", "global"])
def test_three_conditions_of_the_perp_neg_guider(mask):
    def run(model):
        guider = perpneg.Guider_PerpNeg(model)
        guider.set_conds(tiny.prompt(0), tiny.prompt(1), tiny.prompt(9))
        guider.set_cfg(4.0, 1.0)
        return tiny.sample_with(guider, steps=1).double()

    model = tiny.patcher()
    seen = tiny.watch(model)
    guided = run(tiny.guided(model, mask=mask))

    assert seen.labels == [[2, 1, 0], [1]]
    sampler, extra = seen.passes
    guidance = guidance_between(sampler.x[:1], sampler.out[1:2], extra)
    torch.testing.assert_close(guided - run(tiny.patcher()), guidance / 0.18215, rtol=1e-3, atol=2e-2)


def test_dual_cfg_guider_with_its_own_order_of_lists():
    custom = pytest.importorskip("comfy_extras.nodes_custom_sampler")

    def run(model):
        guider = custom.Guider_DualCFG(model)
        guider.set_conds(tiny.prompt(0), tiny.prompt(9), tiny.prompt(1))
        guider.set_cfg(2.0, 4.0)
        return tiny.sample_with(guider, steps=1).double()

    model = tiny.patcher()
    seen = tiny.watch(model)
    guided = run(tiny.guided(model))

    sampler, extra = seen.passes
    row = sampler.transformer_options["cond_or_uncond"].index(0)  # this guider's first list is the negative
    assert extra.transformer_options["cond_or_uncond"] == [0]
    guidance = guidance_between(sampler.x[:1], sampler.out[row : row + 1], extra)
    torch.testing.assert_close(guided - run(tiny.patcher()), guidance / 0.18215, rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("mask", ["attention", "global"])
def test_dual_model_guider_asks_the_model_of_the_branch(mask):
    """The negative has a model of its own: its attention, its second pass."""
    custom = pytest.importorskip("comfy_extras.nodes_custom_sampler")
    if not hasattr(custom, "Guider_DualModel"):
        pytest.skip("this host has no DualModelGuider")

    def run(model):
        guider = custom.Guider_DualModel(model, tiny.patcher(seed=1))
        guider.set_conds(tiny.prompt(0), tiny.prompt(1))
        guider.set_cfg(4.0)
        return tiny.sample_with(guider, steps=1).double()

    model = tiny.patcher()
    seen = tiny.watch(model)
    guided = run(tiny.guided(model, mask=mask))

    _, negative, extra = seen.passes
    alone = tiny.patcher(seed=1)
    seen_alone = tiny.watch(alone)
    tiny.sample_with(tiny.BasicGuider(tiny.guided(alone, mask=mask), tiny.prompt(1)), steps=1)
    assert torch.equal(extra.x, seen_alone.extra[0].x)
    assert torch.equal(extra.out, seen_alone.extra[0].out)
    guidance = guidance_between(negative.x, negative.out, extra)
    torch.testing.assert_close(guided - run(tiny.patcher()), guidance / 0.18215, rtol=1e-3, atol=2e-2)


def test_first_evaluation_of_a_step_counts():
    """A node evaluates the conditions twice and takes the first: that is the attention to read."""

    def twice(args):
        rest = (args["conds"], args["input"], args["sigma"], args["model_options"])
        first = comfy.samplers.calc_cond_batch(args["model"], *rest)
        comfy.samplers.calc_cond_batch(args["model"], rest[0], rest[1].flip(-1), *rest[2:])
        return first

    model = tiny.patcher()
    model.set_model_sampler_calc_cond_batch_function(twice)

    guided = first_denoised(tiny.guided(model))

    expected = first_denoised(tiny.guided(tiny.patcher()))  # in passes of another size
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-3)
    tiny.assert_steered(guided, first_denoised(tiny.patcher()))


def thresholding(args):
    """As dynamic thresholding does it: a CFG function that clamps by what the positive branch spans."""
    cond, uncond = args["cond_denoised"], args["uncond_denoised"]
    guided = uncond + args["cond_scale"] * (cond - uncond)
    limit = cond.abs().amax(dim=(1, 2, 3), keepdim=True)
    return args["input"] - guided.clamp(-limit, limit)


def test_cfg_function_that_thresholds_sees_the_guided_predictions():
    model = tiny.patcher()
    seen = tiny.watch(model)
    model.set_model_sampler_cfg_function(thresholding)

    denoised = first_denoised(tiny.guided(model))

    uncond, cond = (d + guidance_of(seen) for d in seen.passes[0].out.double().chunk(2))
    limit = cond.abs().max()
    assert ((uncond + 4 * (cond - uncond)).abs() > limit).any()
    torch.testing.assert_close(
        denoised, (uncond + 4 * (cond - uncond)).clamp(-limit, limit), rtol=1e-4, atol=1e-3
    )


def test_rescale_cfg_of_0_is_plain_cfg():
    model_advanced = pytest.importorskip("comfy_extras.nodes_model_advanced")
    model = tiny.patcher()
    rescaled = result_of(model_advanced.RescaleCFG().patch(model, 0.0))

    guided = first_denoised(tiny.guided(rescaled))

    torch.testing.assert_close(guided, first_denoised(tiny.guided(tiny.patcher())), rtol=1e-3, atol=1e-2)
    tiny.assert_steered(guided, first_denoised(tiny.patcher()))


CHANGED_CFG = {
    "TCFG": lambda model: result_of(tcfg.TCFG.execute(model)),
    "APG": lambda model: result_of(apg.APG.execute(model, 1.0, 5.0, 0.0)),
    "Mahiro": lambda model: result_of(mahiro.Mahiro.execute(model)),
}


@pytest.mark.parametrize("other", CHANGED_CFG)
def test_nodes_that_change_cfg(other):
    """They see the predictions that they see alone, and the guidance is added to what they make of them."""
    attach = CHANGED_CFG[other]
    alone = first_denoised(attach(tiny.patcher()))
    model = tiny.patcher()
    seen = tiny.watch(model)

    both = first_denoised(tiny.guided(attach(model)))

    tiny.assert_steered(both, alone)
    if other != "Mahiro":  # which is a post-CFG function of the result
        torch.testing.assert_close(both - alone, guidance_of(seen), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("sag_first", [True, False], ids=["sag-first", "sag-last"])
def test_post_cfg_functions_see_the_guided_result(sag_first):
    """And the predictions as the model made them, wherever the nodes stand in the graph."""
    seen_args = []
    other = tiny.patcher()
    seen = tiny.watch(other)

    def attach(model):
        model = model.clone()
        model.set_model_sampler_post_cfg_function(lambda args: seen_args.append(args) or args["denoised"])
        return model

    denoised = first_denoised(attach(tiny.guided(other)) if sag_first else tiny.guided(attach(other)))

    uncond, cond = seen.passes[0].out.chunk(2)
    tiny.assert_steered(denoised, first_denoised(tiny.patcher()))
    assert torch.equal(seen_args[0]["denoised"].double(), denoised)
    assert torch.equal(seen_args[0]["uncond_denoised"], uncond)
    assert torch.equal(seen_args[0]["cond_denoised"], cond)


def test_cfg_pp_samplers_renoise_with_the_negative_alone():
    """euler_cfg_pp: the next latent is the denoised result plus noise from the unguided negative."""

    def second_latent(model):
        seen = tiny.watch(model)
        return seen, lambda: [p.x[:1].double() for p in seen.passes if TAG not in p.transformer_options][1]

    plain = tiny.patcher()
    _, plain_latent = second_latent(plain)
    first_denoised(plain, steps=2, sampler="euler_cfg_pp")
    model = tiny.patcher()
    seen, latent = second_latent(model)
    first_denoised(tiny.guided(model), steps=2, sampler="euler_cfg_pp")

    torch.testing.assert_close(latent() - plain_latent(), guidance_of(seen), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "sampler", ["heun", "dpm_2", "dpmpp_2s_ancestral", "dpmpp_3m_sde", "uni_pc", "ddim", "lcm"]
)
def test_samplers(sampler):
    guided, plain = (
        tiny.sample(model, sampler=sampler) for model in (tiny.guided(tiny.patcher()), tiny.patcher())
    )

    tiny.assert_steered(guided, plain)


def test_the_models_options_are_left_alone():
    """Our options are copies: those of the model are as they were."""
    model = with_pag(tiny.patcher())
    functions = list(model.model_options["sampler_post_cfg_function"])

    first_denoised(tiny.guided(model))

    assert model.model_options["sampler_post_cfg_function"] == functions
    assert "sampler_pre_cfg_function" not in model.model_options
    assert "optimized_attention_override" not in model.model_options["transformer_options"]
