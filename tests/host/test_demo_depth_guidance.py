"""Depth-Aware Guidance of the demo model, with its own head and prior, in every scheduler."""

import comfy.samplers
import pytest
import torch
import torch.nn.functional as F

import nodes as stock
from inner_guidance.demo.ray_casting import render
from inner_guidance.demo.scenes import sample_scene
from inner_guidance.experiments.swept_rows import SWEPT, SWEPT_CONSTANTS, SWEPT_STEP
from inner_guidance.guidance import depth_aware
from inner_guidance.nodes.demo_model import InnerLoadDemoModel
from inner_guidance.nodes.depth_aware_guidance import InnerDepthAwareGuidance
from inner_guidance.nodes.depth_estimate import InnerDepthEstimate
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.node_defaults import defaults, execute

KSAMPLER = comfy.samplers.KSampler
PROMPT = "red sphere, blue box, grey checker floor, white wall"
TARGET = depth.target()


@pytest.fixture(scope="module")
def loaded():
    with torch.inference_mode():
        return InnerLoadDemoModel.execute().args


@pytest.fixture(scope="module")
def guided(loaded):
    """The demo model, guided by its head, by its prior and to a target, as settings say."""
    model, _, _, head, prior, *_ = loaded

    def guided(**settings):
        given = {"model": model, "depth_head": head, "depth_prior": prior, "target_depth": TARGET}
        return execute(InnerDepthAwareGuidance, **given | depth.EVERYWHERE | settings)[0]

    return guided


@pytest.fixture(scope="module")
def toward_target(guided):
    """The demo model, guided to the target alone, at the node's strength."""
    with torch.inference_mode():
        return guided(consistency_scale=0.0, prior_scale=0.0)


@pytest.fixture(scope="module")
def plain(sample, loaded):
    """What KSampler draws without guidance."""
    return lambda **settings: sample(loaded[0], **settings)


@pytest.fixture(scope="module")
def likeness(loaded):
    """The correlation of the target with the depth that the head reads of a latent."""
    model, clip, _, head, *_ = loaded
    target = F.interpolate(TARGET[..., 0].unsqueeze(1), (16, 16), mode="area").flatten()

    def likeness(latent):
        empty = stock.CLIPTextEncode().encode(clip, "")[0]
        given = {"model": model, "depth_head": head, "latent": {"samples": latent}, "positive": empty}
        found = execute(InnerDepthEstimate, ensemble=1, **given)[2].flatten()
        return float(torch.corrcoef(torch.stack([found, target]))[0, 1])

    return likeness


@pytest.fixture(scope="module")
def sample(loaded):
    """KSampler at 128 px, with what the tests do not vary filled in."""

    def sample(model, latent=None, *, steps=4, cfg=1.5, sampler="euler", scheduler="karras", denoise=1.0):
        conds = [stock.CLIPTextEncode().encode(loaded[1], text)[0] for text in (PROMPT, "")]
        latent = latent or stock.EmptyLatentImage().generate(128, 128, 1)[0]
        settings = (3, steps, cfg, sampler, scheduler)
        return stock.KSampler().sample(model, *settings, *conds, latent, denoise)[0]["samples"]

    return sample


def assert_drawn_to_target(drawn, plain, likeness):
    """The deviation is 1 on renders; a sampler that diverges leaves 2.5 far behind."""
    assert drawn.isfinite().all()
    assert drawn.std() < 2.5
    assert likeness(drawn) > likeness(plain) + 0.15


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", KSAMPLER.SCHEDULERS)
def test_every_scheduler_draws_depth_to_the_target(sample, toward_target, plain, likeness, scheduler):
    settings = {"steps": 8, "scheduler": scheduler}
    assert_drawn_to_target(sample(toward_target, **settings), plain(**settings), likeness)


def test_a_picture_is_drawn_over(sample, guided, loaded):
    """With every loss: a nudge, not another picture."""
    model, _, vae, *_ = loaded
    picture = render(sample_scene(1_000_001), size=128).rgb.movedim(0, -1)[None]
    latent = stock.VAEEncode().encode(vae, picture)[0]

    plain, drawn = (sample(m, latent, denoise=0.5) for m in (model, guided(target_scale=1 / 3)))

    tiny.assert_steered(drawn, plain)
    assert (drawn - plain).norm() < (drawn - latent["samples"]).norm()


def test_the_sweep_is_around_the_defaults():
    """A row of it is a row of the comparison: the tables speak of the same guidance."""
    given = defaults(InnerDepthAwareGuidance)

    assert {name: given[name] for name in SWEPT} == SWEPT
    assert SWEPT_STEP == depth_aware.ROBUST_STEP
    assert {name: getattr(depth_aware, name) for name in SWEPT_CONSTANTS} == SWEPT_CONSTANTS
