"""Depth-Aware Guidance by a head that reads the clean estimate: the model itself is only evaluated."""

import logging
from dataclasses import replace

import comfy.latent_formats
import comfy.samplers
import comfy_extras.nodes_perpneg as perpneg
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfy.patcher_extension import WrappersMP

from inner_guidance.guidance import depth_aware as dag
from inner_guidance.host.depth.heads import latent_space
from inner_guidance.host.steering import dag_latent_step
from inner_guidance.nodes.record import InnerRecordFeatures
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.function_wrappers import wrapped
from inner_guidance.tests.support.naive_depth import double
from inner_guidance.tests.support.node_defaults import execute

pytestmark = pytest.mark.oldest_host

CFG = 4.0
MODEL_TYPES = {"small": "EPS", "flux": "FLUX", "chroma": "FLUX", "qwen": "FLUX"}


def ramp(side=16):
    """The target of the tests, at the latent's size: near on the left."""
    return torch.linspace(1, 0, side, dtype=torch.float64).expand(1, 1, side, side)


def guided(model, **settings):
    """The model, steered to a target throughout the run, and the head that does it."""
    head = depth.latent_head(model)
    image = ramp()[0, ..., None].float().expand(-1, -1, -1, 3)
    settings = {"target_depth": image, "consistency_scale": 0.0} | settings
    return depth.depth_guided(model, depth_head=head, **settings), head


def steps_of(model, **kwargs):
    """What a post-CFG function behind ours is told in each step."""
    seen = []
    model.set_model_sampler_post_cfg_function(lambda args: seen.append(dict(args)) or args["denoised"])
    samples = tiny.sample(model, cfg=CFG, **kwargs)
    return samples, seen


def unexplained(network, x0, time, target):
    """The share of the variance of the depth of x0 that the best a * target + b leaves, 0.5 <= a <= 2."""
    d = network({"x0": x0}, time, x0.shape[-2:]).flatten(1)
    centred = target.flatten(1) - target.mean()
    with torch.no_grad():
        a = (centred * (d - d.mean(1, keepdim=True))).mean() / centred.square().mean()
        fit = a.clamp(0.5, 2.0) * centred + d.mean(1, keepdim=True)
    return (d - fit).square().mean(1) / (d - d.mean(1, keepdim=True)).square().mean(1)


@pytest.mark.parametrize("model_type", ["EPS", "V_PREDICTION", "FLOW"])
def test_the_shift_is_the_gradient_of_the_cfg_result_by_finite_differences(model_type):
    guide, head = guided(tiny.patcher(model_type=model_type))
    network = double(head.head.network)
    _, steps = steps_of(guide, steps=3)

    step = steps[1]
    x0 = step["uncond_denoised"] + CFG * (step["cond_denoised"] - step["uncond_denoised"])
    sigma = float(step["sigma"])
    signal = 1 - sigma if model_type == "FLOW" else 1.0
    time = torch.tensor([min(1000 * sigma / (signal + sigma), 800)], dtype=torch.float64)
    shift = (step["denoised"] - x0).double()

    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.no_grad():
        x0, shift = x0.double().clone(), shift.clone()
        slopes, along = [], []
        for direction in torch.randn(12, *x0.shape, generator=generator, dtype=torch.float64):
            above, below = (
                unexplained(network, x0 + sign * 1e-4 * direction, time, ramp()) for sign in (1, -1)
            )
            slopes.append((above - below) / 2e-4)
            along.append((shift * direction).sum())
    slopes, along = torch.cat(slopes), torch.stack(along)
    share = sigma / (sigma**2 + signal**2) ** 0.5
    size = dag.ROBUST_STEP * dag.TARGET_WEIGHT * share * x0.std()
    torch.testing.assert_close(shift.square().mean().sqrt(), size, rtol=1e-3, atol=0)
    # Straight down: the projections on any direction are the slopes, times one negative factor.
    factor = (along * slopes).sum() / slopes.square().sum()
    assert factor < 0
    torch.testing.assert_close(along, factor * slopes, rtol=0, atol=2e-3 * float(along.abs().max()))


@pytest.mark.parametrize("kind", ["small", "flux", "chroma", "sd3", "qwen", "lumina", "zimage"])
def test_every_model_is_steered_to_the_target(kind):
    model = tiny.patcher(kind, MODEL_TYPES.get(kind, "FLOW"))
    space = latent_space(model)
    latent = torch.zeros(1, space.channels, *([1] if kind == "qwen" else []), 16, 16)
    guide, head = guided(model)

    plain, steered = (tiny.sample(m, latent, steps=6, cfg=1.0) for m in (model, guide))
    with torch.no_grad():
        before, after = (
            unexplained(
                head.head.network,
                model.model.process_latent_in(x).view(1, -1, 16, 16),
                torch.zeros(1),
                ramp(),
            )
            for x in (plain, steered)
        )
    assert steered.shape == plain.shape
    assert float(after) < 0.8 * float(before)


def test_strength_0_and_consistency_alone_leave_the_model_as_it_is(caplog):
    caplog.set_level(logging.INFO)
    model = tiny.patcher()
    guide, _ = guided(model, target_scale=0.0, consistency_scale=1.0)
    assert torch.equal(tiny.sample(guide), tiny.sample(model))
    said = [message for message in caplog.messages if "consistency needs a depth head" in message]
    assert len(said) == 1
    assert "latent_head_of_test reads latents: consistency_scale counts as 0." in said[0]


def test_the_pass_is_the_plain_one_and_never_under_autograd():
    """So quantised weights and compiled models can do it."""

    def watched(model):
        model, outputs = model.clone(), []

        def evaluate(executor, *args, **kwargs):
            assert not torch.is_grad_enabled()
            assert args[0].is_inference()
            outputs.append(executor(*args, **kwargs))
            return outputs[-1]

        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", evaluate)
        tiny.sample(model, steps=1)
        return outputs

    model = tiny.patcher()
    guide, _ = guided(model)
    (plain,), (passed,) = watched(model), watched(guide)
    assert torch.equal(plain, passed)


def test_an_image_is_guided_as_it_is_alone():
    guide, _ = guided(tiny.patcher())
    _, (of_two,) = steps_of(guide.clone(), latent=torch.zeros(2, 4, 16, 16), steps=1)
    _, (alone,) = steps_of(guide.clone(), steps=1)
    assert torch.equal(alone["input"], of_two["input"][:1])
    difference = (alone["denoised"] - of_two["denoised"][:1]).norm()
    assert difference < 5e-3 * alone["denoised"].norm()


def test_a_gradient_serves_n_steps(monkeypatch):
    taken = []
    take = dag_latent_step.LatentStep.take
    monkeypatch.setattr(dag_latent_step.LatentStep, "take", lambda *args: taken.append(1) or take(*args))
    guide, _ = guided(tiny.patcher(), every_n_steps=2)
    tiny.sample(guide, steps=4)
    assert len(taken) == 2


def test_what_a_guider_of_its_own_kind_returns_is_guided_once():
    model = tiny.patcher()
    guide, _ = guided(model)

    def denoised(model):
        guider = perpneg.Guider_PerpNeg(model.clone())
        found = []
        guider.model_patcher.add_wrapper_with_key(
            WrappersMP.PREDICT_NOISE,
            "test",
            lambda run, *args, **kwargs: found.append(run(*args, **kwargs)) or found[-1],
        )
        guider.set_conds(tiny.prompt(0), tiny.prompt(1), tiny.prompt(9))
        guider.set_cfg(4.0, 1.0)
        tiny.sample_with(guider, steps=1)
        return found[0]

    plain = denoised(model)
    shift = denoised(guide) - plain
    torch.testing.assert_close(
        shift.square().mean().sqrt(), dag.ROBUST_STEP * dag.TARGET_WEIGHT * plain.std(), rtol=0.02, atol=0
    )


def test_the_prior_guides_too():
    model = tiny.patcher()
    guide, _ = guided(model, target_scale=0.0, depth_prior=depth.prior())
    tiny.assert_steered(tiny.sample(guide), tiny.sample(model))


def test_latents_of_another_format_are_refused():
    head = depth.latent_head(tiny.patcher())
    for other, named in (
        (tiny.patcher("flux", "FLUX"), "Flux (16 channels, scale 0.3611, shift -0.04185)"),
        (tiny.patcher("qwen", "FLUX"), "Wan21 (16 channels, scales"),
    ):
        with pytest.raises(ValueError, match="latent_head_of_test reads latents of SD15") as error:
            depth.depth_guided(other, depth_head=head)
        assert f"but this model has latents of {named}" in str(error.value)


def test_the_scale_of_latents_tells_them_apart():
    model = tiny.patcher()
    model.add_object_patch("latent_format", comfy.latent_formats.SDXL())
    space = latent_space(model)
    assert str(space) == "SDXL (4 channels, scale 0.1303)"
    assert space != latent_space(tiny.patcher())
    assert replace(space, scale="scale 0.1822", name="SD15") == latent_space(tiny.patcher())


def test_what_needs_features_says_so():
    model = tiny.patcher()
    head = depth.latent_head(model)
    with pytest.raises(ValueError, match="mode 'paper' differentiates the model, but latent_head_of_test"):
        depth.depth_guided(model, depth_head=head, mode="paper")
    with pytest.raises(ValueError, match="but Record Features reads depth from the model's features"):
        execute(InnerRecordFeatures, model=model, depth_head=head)


def test_a_video_of_several_frames_is_left_alone(caplog):
    model = tiny.patcher("qwen", "FLUX")
    guide, _ = guided(model)
    latent = torch.zeros(1, 16, 2, 16, 16)
    assert torch.equal(tiny.sample(guide, latent), tiny.sample(model, latent))
    assert "this latent is a video of several frames" in caplog.text


def test_a_video_with_sound_is_left_alone(caplog):
    """The host packs both into one row of numbers, (B, 1, N)."""
    model = wrapped(tiny.patcher(), lambda apply_model, args: args["input"] / 2)
    guide, _ = guided(model)
    parts = [(1, 4, 1, 16, 16), (1, 4, 9)]

    def sampled(model):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(tiny.prompt(0), tiny.prompt(1))
        latent, noise = (
            NestedTensor([make(shape) for shape in parts])
            for make in (torch.zeros, lambda shape: tiny.noise(*shape))
        )
        sampler, sigmas = comfy.samplers.ksampler("euler"), torch.tensor([5.0, 1.0, 0.0])
        return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=0)

    for found, expected in zip(sampled(guide).unbind(), sampled(model).unbind(), strict=True):
        assert torch.equal(found, expected)
    assert "no effect" in caplog.text
    assert "this latent is a video" in caplog.text
