"""Depth-Aware Guidance of the demo model, with its own head and prior, in every sampler and scheduler."""

import comfy.samplers
import pytest
import torch

import nodes as stock
from inner_guidance.demo.ray_casting import render
from inner_guidance.demo.scenes import sample_scene
from inner_guidance.experiments.depth_aware_guidance import SWEPT, SWEPT_CONSTANTS, SWEPT_STEP
from inner_guidance.guidance import depth_aware
from inner_guidance.nodes.demo_model import InnerLoadDemoModel
from inner_guidance.nodes.depth_aware_guidance import InnerDepthAwareGuidance
from inner_guidance.tests.support import depth_models as depth

KSAMPLER = comfy.samplers.KSampler
PROMPT = "red sphere, blue box, grey checker floor, white wall"
ALL_LOSSES = {
    "consistency_scale": 1.0,
    "prior_scale": 1.0,
    "target_scale": 1 / 3,  # which pulls as hard as 1 of the others
    "mode": "robust",
    "start_percent": 0.0,
    "end_percent": 1.0,
    "self_start_percent": 0.0,
    "target_end_percent": 1.0,
    "every_n_steps": 1,
}


@pytest.fixture(scope="module")
def loaded():
    with torch.inference_mode():
        return InnerLoadDemoModel.execute().args


@pytest.fixture(scope="module")
def guided(loaded):
    """The demo model with every loss of the guidance on."""
    model, _, _, head, prior = loaded
    with torch.inference_mode():
        return InnerDepthAwareGuidance.execute(
            model, head, prior, target_depth=depth.target(), **ALL_LOSSES
        ).result[0]


@pytest.fixture(scope="module")
def sample(loaded):
    """KSampler at 128 px, with what the tests do not vary filled in."""

    def sample(model, latent=None, *, steps=4, cfg=1.5, sampler="euler", scheduler="karras", denoise=1.0):
        conds = [stock.CLIPTextEncode().encode(loaded[1], text)[0] for text in (PROMPT, "")]
        latent = latent or stock.EmptyLatentImage().generate(128, 128, 1)[0]
        settings = (3, steps, cfg, sampler, scheduler)
        return stock.KSampler().sample(model, *settings, *conds, latent, denoise)[0]["samples"]

    return sample


@pytest.mark.slow
@pytest.mark.parametrize("sampler", KSAMPLER.SAMPLERS)
def test_every_sampler(sample, guided, sampler):
    """The deviation is 1 on renders; a sampler that diverges leaves 2.5 far behind."""
    drawn = sample(guided, sampler=sampler)

    assert drawn.isfinite().all()
    assert drawn.std() < 2.5


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", KSAMPLER.SCHEDULERS)
def test_every_scheduler(sample, guided, scheduler):
    drawn = sample(guided, scheduler=scheduler)

    assert drawn.isfinite().all()
    assert drawn.std() < 2.5


def test_a_picture_is_drawn_over(sample, guided, loaded):
    model, _, vae, *_ = loaded
    picture = render(sample_scene(1_000_001), size=128).rgb.movedim(0, -1)[None]
    latent = stock.VAEEncode().encode(vae, picture)[0]

    plain, drawn = (sample(m, latent, denoise=0.5) for m in (model, guided))

    assert not torch.equal(plain, drawn)
    assert (drawn - plain).norm() < (drawn - latent["samples"]).norm()  # a nudge, not another picture


def test_the_sweep_is_around_the_defaults():
    """A row of it is a row of the comparison: the tables speak of the same guidance."""
    given = {one.id: getattr(one, "default", None) for one in InnerDepthAwareGuidance.define_schema().inputs}

    assert {name: given[name] for name in SWEPT} == SWEPT
    assert SWEPT_STEP == depth_aware.ROBUST_STEP
    assert {name: getattr(depth_aware, name) for name in SWEPT_CONSTANTS} == SWEPT_CONSTANTS
