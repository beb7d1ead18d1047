"""Sampling runs with any settings: finite, of the same shape, the same twice, and 0 is no guidance at all."""

import comfy.sample
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny

PERCENT = st.sampled_from([0.0, 0.3, 0.6, 1.0])
LATENTS = st.tuples(st.integers(1, 2), st.just(4), st.integers(5, 12), st.integers(5, 12))
RUN = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 2),
        "cfg": st.sampled_from([1.0, 4.0]),
        "sampler": st.sampled_from(["euler", "heun", "dpmpp_2m"]),
        "scheduler": st.sampled_from(["normal", "karras"]),
        "denoise": st.sampled_from([0.3, 1.0]),
    }
)
SAG = st.fixed_dictionaries(
    {
        "scale": st.sampled_from([-1.0, 0.75, 10.0]),
        "blur_sigma": st.sampled_from([0.1, 1.0, 10.0]),
        "threshold": st.sampled_from([0.0, 1.0, 10.0]),
        "blocks": st.sampled_from(["m0", "d0", "m0,u0"]),
        "branch": st.sampled_from(["auto", "positive", "negative"]),
        "space": st.sampled_from(["eps", "v"]),
        "mask": st.sampled_from(["attention", "global", "high frequency"]),
        "start_percent": PERCENT,
        "end_percent": PERCENT,
        "every_n_steps": st.integers(1, 2),
    }
)
DAG = st.fixed_dictionaries(
    {
        "consistency_scale": st.sampled_from([0.0, 0.5]),
        "target_scale": st.sampled_from([0.0, 1.0, 10.0]),
        "target_depth": st.integers(1, 2).map(depth.target),
        "target_mask": st.sampled_from([None, torch.zeros(1, 9, 9), torch.ones(2, 7, 5)]),
        "mode": st.sampled_from(["robust", "paper"]),
        "start_percent": PERCENT,
        "end_percent": PERCENT,
        "self_start_percent": PERCENT,
        "target_end_percent": PERCENT,
        "target_blur": st.floats(0.0, 0.25),
        "every_n_steps": st.integers(1, 2),
        "checkpointing": st.booleans(),
    }
)


def sampled(model, latent, *, steps, cfg, sampler, scheduler, denoise):
    return comfy.sample.sample(
        model,
        tiny.noise(2, *latent.shape[1:])[: len(latent)],
        steps,
        cfg,
        sampler,
        scheduler,
        tiny.prompt(0),
        tiny.prompt(1),
        latent,
        denoise=denoise,
        disable_pbar=True,
        seed=0,
    )


def assert_sound(guide, shape, run):
    latent = tiny.noise(2, *shape[1:], seed=3)[: shape[0]]

    image = sampled(guide(), latent, **run)

    assert image.shape == latent.shape
    assert image.dtype == torch.float32
    assert image.isfinite().all()
    assert torch.equal(sampled(guide(), latent, **run), image)
    if len(latent) > 1:
        plain = sampled(tiny.patcher(), latent, **run)
        rounding = apart(sampled(tiny.patcher(), latent[:1], **run), plain[:1])  # grows from step to step
        assert apart(sampled(guide(), latent[:1], **run), image[:1]) < max(0.02, 5 * rounding)


def apart(image, other):
    return (image - other).norm() / image.norm()


@settings(max_examples=12)
@given(shape=LATENTS, run=RUN, values=SAG)
def test_self_attention_guidance(shape, run, values):
    assert_sound(lambda: tiny.guided(tiny.patcher(), **values), shape, run)


@settings(max_examples=12)
@given(shape=LATENTS, run=RUN, values=DAG)
def test_depth_aware_guidance(shape, run, values):
    assert_sound(lambda: depth.depth_guided(tiny.patcher(), **values), shape, run)


@settings(max_examples=6)
@given(shape=LATENTS, run=RUN, sag=SAG, dag=DAG)
def test_strengths_of_0_are_no_guidance(shape, run, sag, dag):
    latent = tiny.noise(*shape, seed=3)
    off = {"consistency_scale": 0.0, "target_scale": 0.0, "prior_scale": 0.0}

    model = tiny.guided(depth.depth_guided(tiny.patcher(), **dag | off), **sag | {"scale": 0.0})

    assert torch.equal(sampled(model, latent, **run), sampled(tiny.patcher(), latent, **run))
