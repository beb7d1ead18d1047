"""Which part of a run the percentages are of."""

import math

import comfy.sample
import comfy.samplers
import pytest
import torch

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
