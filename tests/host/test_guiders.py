"""Guiders with condition lists of their own: guidance and records are those of the host's CFGGuider."""

from functools import partial

import comfy.samplers
import comfy_extras.nodes_perpneg as perpneg
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.classifier_models import classifier_guided

pytestmark = pytest.mark.oldest_host

POSITIVE, NEGATIVE, OTHER = (tiny.prompt(i) for i in (0, 1, 9))


def custom_sampler():
    """The host's guiders, in a file that ComfyUI 0.9.2's tree cannot import."""
    return pytest.importorskip("comfy_extras.nodes_custom_sampler")


def cfg(model, scale=4.0):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(POSITIVE, NEGATIVE)
    guider.set_cfg(scale)
    return guider


def dual_cfg(model, nested, scales=(2.0, 4.0)):
    guider = custom_sampler().Guider_DualCFG(model)
    guider.set_conds(POSITIVE, OTHER, NEGATIVE)
    guider.set_cfg(*scales, nested=nested)
    return guider


def perp_neg(model):
    guider = perpneg.Guider_PerpNeg(model)
    guider.set_conds(POSITIVE, NEGATIVE, OTHER)
    guider.set_cfg(4.0, 1.0)
    return guider


def dual_model(model, scale=4.0):
    if not hasattr(custom_sampler(), "Guider_DualModel"):
        pytest.skip("this host has no DualModelGuider")
    guider = custom_sampler().Guider_DualModel(model, tiny.patcher())
    guider.set_conds(POSITIVE, NEGATIVE)
    guider.set_cfg(scale)
    return guider


class NegativeFirst(comfy.samplers.CFGGuider):
    """Evaluates its lists one by one, the negative first, and calls no function of the host's CFG."""

    def predict_noise(self, x, timestep, model_options, seed=None):
        uncond, cond = (
            comfy.samplers.calc_cond_batch(self.inner_model, [self.conds[name]], x, timestep, model_options)[
                0
            ]
            for name in ("negative", "positive")
        )
        return uncond + self.cfg * (cond - uncond)


def negative_first(model):
    guider = NegativeFirst(model)
    guider.set_conds(POSITIVE, NEGATIVE)
    guider.set_cfg(4.0)
    return guider


GUIDERS = {
    "DualCFGGuider regular": lambda model: dual_cfg(model, nested=False),
    "DualCFGGuider nested": lambda model: dual_cfg(model, nested=True),
    "DualCFGGuider nested, cfg 1": lambda model: dual_cfg(model, nested=True, scales=(2.0, 1.0)),
    "PerpNegGuider": perp_neg,
    "DualModelGuider": dual_model,
    "negative first": negative_first,
}


def denoised(make_guider, model, steps=1):
    """What the guider hands to the sampler in each step."""
    found = []

    def wrapper(executor, *args, **kwargs):
        found.append(executor(*args, **kwargs))
        return found[-1]

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", wrapper)
    tiny.sample_with(make_guider(model), steps=steps)
    return torch.stack(found).double()


def shift(make_guider, guide, model=None):
    """What a guidance adds in the first step."""
    model = model or tiny.patcher()
    return denoised(make_guider, guide(model)) - denoised(make_guider, model)


def assert_close(a, b, rel=1e-3):
    """Equal within what float32 convolutions differ by when the batch is cut differently."""
    assert b.abs().max() > 0.05
    torch.testing.assert_close(a, b, rtol=0, atol=rel * float(b.abs().max()))


GUIDANCES = {
    "SAG": tiny.guided,
    "DAG": depth.depth_guided,
    "DAG, paper": lambda model: depth.depth_guided(model, mode="paper", consistency_scale=50.0),
    "classifier": lambda model: classifier_guided(model, scale=3.0),
}


@pytest.fixture(scope="module")
def hosts_shift():
    """The shift with the host's guider, by guidance."""
    with torch.inference_mode():
        return {name: shift(cfg, guide) for name, guide in GUIDANCES.items()}


@pytest.mark.parametrize("guidance", GUIDANCES)
@pytest.mark.parametrize("make_guider", GUIDERS.values(), ids=GUIDERS)
def test_the_shift_is_that_of_the_hosts_guider(make_guider, guidance, hosts_shift):
    """Whatever the guider multiplies on the way, and in whatever order it evaluates its lists."""
    assert_close(shift(make_guider, GUIDANCES[guidance]), hosts_shift[guidance])


class OtherNames(comfy.samplers.CFGGuider):
    """Its lists are not called positive and negative."""

    def predict_noise(self, x, timestep, model_options, seed=None):
        lists = [self.conds[name] for name in ("without", "with")]
        uncond, cond = comfy.samplers.calc_cond_batch(self.inner_model, lists, x, timestep, model_options)
        return uncond + self.cfg * (cond - uncond)


@pytest.mark.parametrize(
    "guide", [tiny.guided, depth.depth_guided, classifier_guided], ids=["SAG", "DAG", "classifier"]
)
def test_a_guider_without_a_positive_is_left_alone_and_the_log_says_so(guide, caplog):
    def other_names(model):
        guider = OtherNames(model)
        guider.inner_set_conds({"with": POSITIVE, "without": NEGATIVE})
        guider.set_cfg(4.0)
        return guider

    assert torch.equal(denoised(other_names, guide(tiny.patcher())), denoised(other_names, tiny.patcher()))
    assert len([m for m in caplog.messages if "has no effect at sigma" in m]) == 1


@pytest.mark.parametrize("name", ["DualCFGGuider regular", "PerpNegGuider"])
def test_a_latent_head_moves_cfg_pp_samplers_as_far_as_euler(name):
    """They renoise from the unconditional estimate, before the guider has the result that the head reads."""
    model = tiny.patcher()
    guided = depth.depth_guided(model, depth_head=depth.latent_head(model), target_depth=depth.target())
    sigmas = torch.tensor([14.0, 9.0])

    def moved(sampler):
        after, before = (
            GUIDERS[name](one).sample(
                tiny.noise(), torch.zeros(1, 4, 16, 16), comfy.samplers.sampler_object(sampler), sigmas
            )
            for one in (guided, model)
        )
        return (after - before).double()

    assert_close(moved("euler_cfg_pp"), moved("euler"))


@pytest.mark.parametrize("guide", GUIDANCES.values(), ids=GUIDANCES)
def test_dual_model_guider_at_cfg_1_calls_no_cfg_function(guide):
    assert_close(shift(partial(dual_model, scale=1.0), guide), shift(partial(cfg, scale=1.0), guide))


def test_where_the_dual_guider_leaves_its_negative_out_the_positive_guides():
    """At cfg_cond2_negative 1 its second prompt stands where other guiders have the negative."""
    without_negative = partial(dual_cfg, nested=False, scales=(2.0, 1.0))
    assert_close(shift(without_negative, tiny.guided), shift(cfg, partial(tiny.guided, branch="positive")))


@pytest.mark.parametrize(("every_n_steps", "nested"), [(1, False), (2, True)], ids=["regular", "nested"])
@pytest.mark.parametrize("guide", [tiny.guided, depth.depth_guided], ids=["SAG", "DAG"])
def test_with_its_second_prompt_like_the_first_the_dual_guider_is_the_hosts(guide, every_n_steps, nested):
    """cond1 = cond2 leaves CFG at the second scale in both styles; so it must with guidance, step by step."""

    def same_prompts(model):
        guider = custom_sampler().Guider_DualCFG(model)
        guider.set_conds(POSITIVE, POSITIVE, NEGATIVE)
        guider.set_cfg(2.0, 4.0, nested=nested)
        return guider

    guided = guide(tiny.patcher(), every_n_steps=every_n_steps)
    plain, expected = denoised(cfg, tiny.patcher(), steps=3), denoised(cfg, guided, steps=3)
    found = denoised(same_prompts, guided, steps=3)

    assert all(step.abs().max() > 0.05 for step in expected - plain)
    for step, step_of_host, unguided in zip(found, expected, plain, strict=True):
        torch.testing.assert_close(
            step, step_of_host, rtol=0, atol=5e-3 * float((step_of_host - unguided).abs().max())
        )


@pytest.mark.parametrize("nested", [False, True], ids=["regular", "nested"])
def test_another_nodes_cfg_function_within_the_dual_guider(nested):
    """It is given shifted predictions, as with the host's guider, and the shift is still added once."""
    seen = []

    def linear(args):
        seen.append(args["cond_denoised"].double())
        return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])

    model = tiny.patcher()
    model.set_model_sampler_cfg_function(linear)

    expected = shift(cfg, tiny.guided)
    assert_close(shift(partial(dual_cfg, nested=nested), tiny.guided, model), expected)
    assert_close(seen[0] - seen[1], expected[0])


@pytest.mark.parametrize(
    "name", ["DualCFGGuider regular", "DualCFGGuider nested", "PerpNegGuider", "negative first"]
)
def test_records_are_those_of_the_hosts_guider(name):
    """The depth is that of the positive; attention is kept under the guider's names for its lists."""

    def records(make_guider):
        watched, attention = rec.record_attention(tiny.patcher(), prompt=False)
        watched, features = rec.record_features(watched, depth_head=depth.head())
        tiny.sample_with(make_guider(watched), steps=1)
        return rec.steps_of(attention)[0], rec.steps_of(features)[0]

    (attention, features), (its_attention, its_features) = records(GUIDERS[name]), records(cfg)
    rec.assert_close_in_half(features.depth, its_features.depth)
    for key, expected in its_features.features.items():
        torch.testing.assert_close(features.features[key].float(), expected.float(), rtol=1e-2, atol=1e-2)
    for key, expected in its_attention.received.items():
        rec.assert_close_in_half(attention.received[key], expected)
