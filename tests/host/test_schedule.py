"""The schedule of a run: steps and sigmas, also of schedules that rise or begin above the largest sigma."""

import math

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import pytest
import torch

from inner_guidance.host.sampling import noise_levels, schedule
from inner_guidance.host.sampling.sigma_ranges import SigmaRange
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.sag_reference import SCALE

pytestmark = pytest.mark.oldest_host

FALLING = torch.tensor([10.0, 4.0, 1.0, 0.0])
RISING = torch.tensor([1e-4, 1.0, 4.0, 10.0])
RESTARTED = torch.tensor([10.0, 1.0, 4.0, 1.0, 0.0])


def flipped(steps):
    """The sigmas that the host's FlipSigmas makes of a schedule; ComfyUI 0.9.2 cannot import it here."""
    model_sampling = tiny.patcher().get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, "normal", steps).flip(0)
    sigmas[0] = 1e-4
    return sigmas


def unsampled(model, steps=4, **settings):
    """A latent with noise put back into it, as unsampling workflows do."""
    return comfy.sample.sample_custom(
        model,
        torch.zeros(1, 4, 16, 16),
        1.0,
        comfy.samplers.sampler_object("euler"),
        flipped(steps),
        tiny.prompt(0),
        tiny.prompt(1),
        tiny.noise(seed=3),
        disable_pbar=True,
        **settings,
    )


@pytest.mark.parametrize(
    ("sigmas", "sigma", "step", "following"),
    [
        (FALLING, 10.0, 0, 4.0),
        (FALLING, 12.0, 0, 10.0),
        (FALLING, 5.0, 0, 4.0),
        (FALLING, 4.0, 1, 1.0),
        (FALLING, 1.0, 2, 0.0),
        (RISING, 1e-4, 0, 1.0),
        (RISING, 0.5, 0, 1.0),
        (RISING, 1.0, 1, 4.0),
        (RISING, 4.0, 2, 10.0),
        (RESTARTED, 10.0, 0, 1.0),
        (RESTARTED, 4.0, 2, 1.0),
        (RESTARTED, 1.0, 3, 0.0),
    ],
)
def test_the_step_of_a_sigma_and_the_sigma_that_follows(sigmas, sigma, step, following):
    assert schedule.step_of(sigma, sigmas) == step
    assert schedule.next_sigma(sigma, sigmas) == pytest.approx(following)


def test_unsampling_is_recorded_in_the_order_of_its_steps():
    watched, record = rec.record_attention(tiny.patcher())
    seen = tiny.watch(watched)

    unsampled(watched)

    steps = rec.steps_of(record)
    assert [step.number for step in steps] == [0, 1, 2, 3]
    assert [step.sigma for step in steps] == pytest.approx([p.sigma for p in seen.passes])
    assert steps[0].sigma < steps[-1].sigma


def test_every_second_step_of_unsampling_has_an_extra_pass():
    model = tiny.patcher()
    seen = tiny.watch(model)

    unsampled(tiny.guided(model, every_n_steps=2))

    assert [p.sigma for p in seen.extra] == pytest.approx(flipped(4)[[0, 2]].tolist())


def test_a_start_of_0_percent_has_no_upper_end():
    flow = tiny.patcher("flux", "FLUX").get_model_object("model_sampling")

    assert 1.2 in SigmaRange.from_percent(flow, 0.0, 1.0)
    assert 1.2 not in SigmaRange.from_percent(flow, 0.01, 1.0)


@pytest.mark.parametrize(
    ("kind", "model_type", "sigma", "ratio"),
    [
        ("small", "EPS", 3.0, 3.0),
        ("small", "EDM", 3.0, 3.0),
        ("flux", "FLUX", 0.9, 9.0),
        ("flux", "FLUX", 1.0, math.inf),
    ],
)
def test_noise_to_signal(kind, model_type, sigma, ratio):
    model_sampling = tiny.patcher(kind, model_type).get_model_object("model_sampling")

    assert noise_levels.noise_to_signal(model_sampling, sigma) == pytest.approx(ratio, rel=1e-5)


def test_guidance_of_a_flow_model_between_the_passes_is_the_last_one_in_eps():
    """x = (1 - sigma) x0 + sigma e, so a constant e - e_bar shifts x0 by sigma / (1 - sigma)."""
    model = tiny.patcher("sd3", "FLOW")
    seen = tiny.watch(model)
    latent = torch.zeros(1, 16, 16, 12)
    denoised = []
    sigmas = torch.tensor([0.9, 0.8, 0.0])
    comfy.sample.sample_custom(
        tiny.guided(model, every_n_steps=2),
        tiny.noise(*latent.shape),
        4.0,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        tiny.prompt(0),
        tiny.prompt(1),
        latent,
        callback=lambda i, x0, *_: denoised.append(x0.double()),
        disable_pbar=True,
    )
    first, extra, second = seen.passes[:3]
    uncond, cond = second.out.double().chunk(2)
    plain = uncond + 4 * (cond - uncond)
    # In x, the degraded estimate has the coefficient 1 - sigma.
    x0_bar = first.out[:1].double() + (extra.x.double() - first.x[:1].double()) / (1 - 0.9)
    guidance = SCALE * (x0_bar - extra.out.double())

    shift = denoised[1] - plain
    expected = guidance * (0.8 / 0.2) / (0.9 / 0.1)
    torch.testing.assert_close(shift, expected, rtol=1e-3, atol=1e-3)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize(
    ("sigmas", "evaluated"),
    [
        ([0.9, 0.8, 0.6, 1.0, 0.7, 0.0], [0.9, 0.6, 1.0, 0.7]),
        # ModelSamplingSD3 rounds 1 to these at a shift of 1.66 and of 1.32.
        ([1 - 2**-24, 0.8, 0.6, 0.4, 0.0], [1.0, 0.8, 0.6]),
        ([0.9, 0.8, 0.6, 1 + 2**-23, 0.7, 0.0], [0.9, 0.6, 1.0, 0.7]),
    ],
    ids=["returns", "begins just below", "returns just above"],
)
def test_no_guidance_is_reused_from_or_for_noise_alone(sigmas, evaluated):
    """A constant e - e_bar would be an infinite shift of x0 there, or none afterwards."""
    model = tiny.patcher(model_type="FLOW")
    seen = tiny.watch(model)

    samples = comfy.sample.sample_custom(
        tiny.guided(model, every_n_steps=2),
        tiny.noise(),
        4.0,
        comfy.samplers.sampler_object("euler"),
        torch.tensor(sigmas),
        tiny.prompt(0),
        tiny.prompt(1),
        torch.zeros(1, 4, 16, 16),
        disable_pbar=True,
    )

    assert [p.sigma for p in seen.extra] == pytest.approx(evaluated)
    assert samples.isfinite().all()


def test_depth_is_finite_without_noise_on_an_edm_model():
    model_sampling = tiny.patcher(model_type="EDM").get_model_object("model_sampling")

    sigma = noise_levels.sigma_at(model_sampling, torch.zeros(2))

    assert model_sampling.timestep(sigma).isfinite().all()
    assert (sigma > 0).all()
    assert sigma.max() < 0.01


def test_a_compute_dtype_of_fp16_is_known_in_the_first_run():
    """ModelComputeDtype patches the model when it is loaded, which is after the run has begun."""
    model = tiny.patcher("sd15")
    model.set_model_compute_dtype(torch.float16)
    guided = depth.depth_guided(model, kind="sd15")

    first, second = (tiny.sample(guided, torch.zeros(1, 4, 8, 8), steps=2) for _ in range(2))

    torch.testing.assert_close(first, second, rtol=0, atol=0)
