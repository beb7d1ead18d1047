"""Which part of a run the percentages are of, and what is said where they leave nothing to do."""

import logging
import math
from dataclasses import replace

import comfy.sample
import comfy.samplers
import pytest
import torch

from inner_guidance.depth_head.head import PUBLIC_READOUT
from inner_guidance.host.depth.heads import HostedDepthHead
from inner_guidance.host.sampling import sigma_ranges
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.depth_models import sampled

pytestmark = pytest.mark.oldest_host

IMAGE = tiny.noise(1, 4, 16, 16, seed=3)
# A target at the node's defaults.
TARGET = {
    "consistency_scale": 0.0,
    "target_depth": depth.target(),
    "self_start_percent": 0.6,
    "target_end_percent": 0.6,
}
PARAMETRISATIONS = [("small", "EPS"), ("small", "EDM"), ("small", "FLOW"), ("flux", "FLUX")]


def part(model, latent, start, end, add_noise=True, steps=6):
    """The samples of KSamplerAdvanced: the steps from start to end, with leftover noise."""
    noise = tiny.noise(*latent.shape) if add_noise else torch.zeros_like(latent)
    return comfy.sample.sample(
        model,
        noise,
        steps,
        4.0,
        "euler",
        "normal",
        tiny.prompt(0),
        tiny.prompt(1),
        latent,
        start_step=start,
        last_step=end,
        disable_pbar=True,
        seed=0,
    )


@pytest.fixture
def said(caplog):
    """What the pack has logged so far."""
    caplog.set_level(logging.WARNING)
    return lambda: [r.getMessage() for r in caplog.records if "-A" in r.getMessage()]


# What the percentages are of


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("scheduler", ["karras", "normal"])
@pytest.mark.parametrize("denoise", [0.2, 0.5, 1.0])
def test_a_target_acts_from_the_first_step_of_every_run(denoise, scheduler, steps):
    run = {"latent": IMAGE, "denoise": denoise, "scheduler": scheduler, "steps": steps}

    guided, plain = sampled(settings=TARGET, **run), sampled(guide=False, **run)

    assert (guided - plain).norm() > 1e-3 * plain.norm()


@pytest.mark.parametrize(("kind", "model_type"), PARAMETRISATIONS)
def test_percentages_are_turned_into_sigmas_and_back(kind, model_type):
    model_sampling = tiny.patcher(kind, model_type).get_model_object("model_sampling")

    for percent in (0.1, 0.5, 0.9):
        sigma = model_sampling.percent_to_sigma(percent)
        assert sigma_ranges.percent_at(model_sampling, sigma) == pytest.approx(percent, abs=1e-4)
    assert sigma_ranges.percent_at(model_sampling, float(model_sampling.sigma_max)) == 0
    assert sigma_ranges.percent_at(model_sampling, math.inf) == 0


@pytest.mark.parametrize(("kind", "model_type"), PARAMETRISATIONS)
def test_half_of_image_to_image_is_half_of_what_is_sampled(kind, model_type):
    """Of a run that begins at 40 percent of the schedule, 50 percent is at 70 percent of it."""
    model_sampling = tiny.patcher(kind, model_type).get_model_object("model_sampling")
    first = model_sampling.percent_to_sigma(0.4)

    half = sigma_ranges.SigmaRange.from_percent(model_sampling, 0.0, 0.5, counted_from=first)

    assert half.end == pytest.approx(float(model_sampling.percent_to_sigma(0.7)), rel=1e-3)
    assert first in half


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
def test_in_text_to_image_percentages_are_the_hosts(scheduler):
    """Also where a schedule begins below the largest sigma, as ddim_uniform does."""
    model_sampling = tiny.patcher().get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, scheduler, 6)
    empty = torch.zeros(1, 4, 16, 16)

    counted_from = sigma_ranges.counted_from(model_sampling, tiny.noise(), empty, sigmas)
    within = sigma_ranges.SigmaRange.from_percent(model_sampling, 0.2, 0.7, counted_from)

    assert within.start == model_sampling.percent_to_sigma(0.2)
    assert within.end == model_sampling.percent_to_sigma(0.7)


def test_the_last_half_of_image_to_image_is_guided_by_sag():
    model = tiny.patcher()
    seen = tiny.watch(model)

    tiny.sample(tiny.guided(model, end_percent=0.4), IMAGE, steps=4, denoise=0.4)

    sigmas = sorted({p.sigma for p in seen.passes}, reverse=True)
    assert [p.sigma for p in seen.extra] == pytest.approx(sigmas[:2])


def test_the_first_half_of_image_to_image_is_recorded():
    watched, record = rec.record_attention(tiny.patcher(), end_percent=0.5)

    tiny.sample(watched, IMAGE, steps=4, denoise=0.4)

    assert [step.number for step in rec.steps_of(record)] == [0, 1]


@pytest.mark.parametrize("latent", [torch.zeros(1, 4, 16, 16), IMAGE], ids=["empty", "image"])
def test_two_parts_of_a_run_are_guided_as_the_whole(latent, said):
    settings = TARGET | {"consistency_scale": 1.0}
    model = tiny.guided(depth.depth_guided(tiny.patcher(), **settings), start_percent=0.3)

    whole = part(model, latent, 0, 6)
    first = part(model, latent, 0, 2)
    both = part(model, first, 2, 6, add_noise=False)

    guidance = whole - part(tiny.patcher(), latent, 0, 6)
    assert guidance.norm() > 0.1 * whole.norm()
    assert (both - whole).norm() < 0.1 * guidance.norm()  # rounding: the latent is rescaled in between
    assert said() == []


# What is said


def test_a_graph_of_defaults_says_nothing(said):
    defaults = {"self_start_percent": 0.6, "target_end_percent": 0.6}

    tiny.sample(tiny.guided(depth.depth_guided(tiny.patcher(), **defaults)), steps=4)

    assert said() == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"start_percent": 0.7, "end_percent": 0.3},
            "Depth-Aware Guidance: no effect of consistency_scale and target_scale in this run: "
            "start_percent (0.7) is not below end_percent (0.3). Lower start_percent or raise end_percent.",
        ),
        (
            {"start_percent": 0.7, "target_end_percent": 0.6},
            "Depth-Aware Guidance: no effect of target_scale in this run: start_percent (0.7) is not below "
            "target_end_percent (0.6). Lower start_percent or raise target_end_percent.",
        ),
        (
            {"self_start_percent": 0.4, "end_percent": 0.8},
            "Depth-Aware Guidance: no effect of consistency_scale in this run: none of its 2 steps is "
            "between self_start_percent (0.4) and end_percent (0.8). Lower self_start_percent, raise "
            "end_percent, or sample more steps.",
        ),
    ],
    ids=["nothing", "no target", "no step"],
)
def test_strengths_without_a_step_are_named_once_a_run(settings, sentence, said):
    sampled(settings={"target_depth": depth.target()} | settings, steps=2)

    assert said() == [sentence]


def test_a_range_that_ends_where_it_starts_is_empty_and_says_so(said):
    """Also where a step is exactly there, as the second of three is at a half."""
    model = tiny.patcher()
    model_sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, "normal", 3)
    assert model_sampling.percent_to_sigma(0.5) in sigmas.tolist()

    image = tiny.sample(tiny.guided(model, start_percent=0.5, end_percent=0.5), steps=3)

    assert torch.equal(image, tiny.sample(model, steps=3))
    (sentence,) = said()
    assert "start_percent (0.5) is not below end_percent (0.5)" in sentence


def test_sag_without_a_step_says_so(said):
    tiny.sample(tiny.guided(tiny.patcher(), start_percent=0.41, end_percent=0.42), steps=2)

    (sentence,) = said()
    assert sentence.startswith(
        "Self-Attention Guidance: no effect of scale in this run: none of its 2 steps is between "
        "start_percent (0.41) and end_percent (0.42)."
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prior_scale": 2.0}, "prior_scale has no effect without a prior. Connect depth_prior."),
        ({"target_scale": 2.0}, "target_scale has no effect without a target. Connect target_depth."),
        (
            {"target_scale": 0.0, "target_mask": torch.ones(1, 8, 8)},
            "target_mask has no effect without a target. Connect target_depth.",
        ),
        (
            {"target_depth": depth.target(), "target_mask": torch.zeros(1, 8, 8)},
            "target_mask is black, so target_depth has no effect. Paint white where it applies.",
        ),
        (
            {"consistency_scale": 0.0, "prior_scale": 0.0, "target_scale": 0.0},
            "it does nothing, because all strengths are 0. Raise one, or bypass the node.",
        ),
        (
            {"consistency_scale": 0.0},
            "it does nothing, because no strength above 0 has the input that it needs. Raise "
            "consistency_scale, or connect depth_prior or target_depth.",
        ),
    ],
    ids=["prior", "target", "mask", "black mask", "all 0", "nothing connected"],
)
def test_what_is_set_and_has_no_effect_is_named(settings, sentence, said):
    depth.depth_guided(tiny.patcher(), **settings)

    assert said() == [f"Depth-Aware Guidance: {sentence}"]


def test_a_target_that_is_flat_where_it_applies_says_so(said):
    """It steers as no target does."""
    halves = torch.ones(1, 64, 64, 3)
    halves[:, :32] = 0.0
    mask = torch.zeros(1, 64, 64)
    mask[:, 40:] = 1.0

    found = [
        tiny.sample(depth.depth_guided(tiny.patcher(), **settings), steps=2)
        for settings in ({}, {"target_depth": halves, "target_mask": mask})
    ]

    assert torch.equal(*found)
    assert said() == [
        "Depth-Aware Guidance: no effect of target_scale in image 1 of the batch: within the frame of the "
        "image and target_mask, its target_depth has a single grey value. Connect a depth map with near and "
        "far there, or enlarge target_mask."
    ]


def test_sag_above_all_attention_says_so(said):
    tiny.sample(tiny.guided(tiny.patcher(), threshold=10.0), steps=2)

    assert said() == [
        "Self-Attention Guidance: no effect of scale in this run: no place has attention above threshold "
        "(10). Lower threshold."
    ]


@pytest.mark.parametrize("name", ["scale", "blur_sigma"])
def test_sag_at_0_says_so(name, said):
    tiny.guided(tiny.patcher(), **{name: 0.0})

    assert said() == [
        f"Self-Attention Guidance: it does nothing, because {name} is 0. Raise it, or bypass the node."
    ]


def test_consistency_with_a_weak_branch_that_was_never_trained_counts_as_0(said):
    head = replace(depth.readout_head().head, training={"source": PUBLIC_READOUT})
    public = HostedDepthHead.of(head)

    model = depth.depth_guided(tiny.patcher(), depth_head=public)

    assert model.model_options == tiny.patcher().model_options
    first, second = said()
    assert first.startswith("Depth-Aware Guidance: consistency_scale counts as 0, because the weak branch")
    assert "it does nothing" in second
    with_target = {"depth_head": public, "target_depth": depth.target()}
    assert torch.equal(
        sampled(settings=with_target, steps=1),
        sampled(settings=with_target | {"consistency_scale": 0.0}, steps=1),
    )


def test_depth_in_context_windows_is_not_read_and_says_so(said):
    latent = torch.zeros(4, 4, 16, 16)
    model = depth.depth_guided(tiny.windowed(tiny.patcher()))

    tiny.sample(model, latent, steps=1)

    (sentence,) = said()
    assert "context windows" in sentence
