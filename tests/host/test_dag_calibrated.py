"""Depth-Aware Guidance by a calibrated head: what is as good as real images is left alone."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from inner_guidance.depth_head.calibration import Calibration, LossLevels
from inner_guidance.depth_head.head_files import load_depth_head, save_depth_head
from inner_guidance.depth_head.prior import schedule
from inner_guidance.depth_head.training import CHECKED_TIMES
from inner_guidance.guidance import depth_aware as dag
from inner_guidance.host.depth.calibration import calibration_of, prior_levels
from inner_guidance.host.depth.heads import HostedDepthHead
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.naive_depth import double, naive_depth

pytestmark = pytest.mark.oldest_host

TIMES = (100, 900)
CONSISTENCY = {"prior_scale": 0.0, "target_scale": 0.0}


def maps(count=4, seed=0):
    """(count, 2, 8, 8)."""
    return torch.rand(count, len(TIMES), 8, 8, generator=torch.Generator().manual_seed(seed))


def calibrated(means, deviations):
    """The tiny models' head, with these levels of consistency at TIMES."""
    head = depth.head().head
    levels = LossLevels(TIMES, tuple(means), tuple(deviations))
    return HostedDepthHead.of(replace(head, calibration=Calibration(TIMES, maps().half(), levels)))


def shifts(latent=None, steps=2, **settings):
    """Of each step: latent, sigma and the shift of the estimate."""
    model = tiny.patcher()
    guided = depth.depth_guided(model, **settings)
    seen = []

    def look(args):
        seen.append((args["input"].clone(), args["sigma"].clone(), args["denoised"] - args["cond_denoised"]))
        return args["denoised"]

    guided.set_model_sampler_post_cfg_function(look)
    tiny.sample(guided, latent, steps=steps, cfg=1.0)
    return model, seen


def consistency(model, x, sigma):
    """L_dc (B,) and the time, in float64."""
    _, (strong, weak) = naive_depth(model, depth.head().head.network, x, sigma, tiny.prompt(0))
    time = float(model.get_model_object("model_sampling").timestep(sigma[:1].float()))
    return ((strong.detach() - weak.detach()) ** 2).mean((1, 2, 3)).numpy(), time


def test_a_calibrated_consistency_pulls_by_the_slope_of_its_hinge():
    model, plain = shifts(**CONSISTENCY)
    ((usual,), _) = consistency(model, *plain[0][:2])
    means, deviations = (0.5 * usual, 0.2 * usual), (2 * usual, 3 * usual)
    _, found = shifts(depth_head=calibrated(means, deviations), **CONSISTENCY)

    # The first step alone starts from the same latent.
    (x, sigma, whole), (_, _, part) = plain[0], found[0]
    (loss,), time = consistency(model, x, sigma)
    slope = (loss - np.interp(time, TIMES, means)) / np.interp(time, TIMES, deviations)
    assert 0.1 < slope < 0.9
    torch.testing.assert_close(part, slope * whole, rtol=2e-3, atol=1e-6)


def test_each_image_of_a_batch_is_measured_by_itself():
    model, plain = shifts(torch.zeros(2, 4, 16, 16), steps=1, **CONSISTENCY)
    losses, _ = consistency(model, *plain[0][:2])
    between = (losses.mean(),) * 2
    _, found = shifts(
        torch.zeros(2, 4, 16, 16), steps=1, depth_head=calibrated(between, (0.0, 0.0)), **CONSISTENCY
    )

    worse = int(losses.argmax())
    torch.testing.assert_close(found[0][2][worse], plain[0][2][worse])
    assert plain[0][2][1 - worse].abs().max() > 1e-4
    assert found[0][2][1 - worse].abs().max() == 0


def test_a_run_that_pushes_nothing_says_so(caplog):
    caplog.set_level(logging.INFO)
    shifts(depth_head=calibrated((1.0, 1.0), (0.1, 0.1)), **CONSISTENCY)
    assert [r.message for r in caplog.records if "nothing was changed" in r.message]

    caplog.clear()
    shifts(**CONSISTENCY)
    assert "nothing was changed" not in caplog.text


def test_images_as_good_as_real_ones_are_not_guided_and_need_no_backward_pass(monkeypatch):
    differentiated, grad = [], torch.autograd.grad

    def watch(outputs, inputs, *args, **kwargs):
        differentiated.append(getattr(inputs, "shape", None))
        return grad(outputs, inputs, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", watch)
    _, found = shifts(depth_head=calibrated((1.0, 1.0), (0.1, 0.1)), **CONSISTENCY)
    assert (1, 4, 16, 16) not in differentiated
    _, usual = shifts(**CONSISTENCY)
    assert (1, 4, 16, 16) in differentiated

    assert [float(shift.abs().max()) for _, _, shift in found] == [0, 0]
    assert all(shift.abs().max() > 1e-4 for _, _, shift in usual)


def test_the_papers_rule_is_not_calibrated():
    settings = {"mode": "paper", "consistency_scale": 10.0, "target_scale": 0.0, "depth_prior": depth.prior()}
    runs = [
        depth.sampled(settings=settings | {"depth_head": head}, sampler="ddpm")
        for head in (depth.head(), calibrated((1.0, 1.0), (0.1, 0.1)))
    ]

    assert torch.equal(*runs)


def prior_loss_of(prior, depth_maps, etas, tau):
    """Mean square (n,) of d - D_phi(d_tau), in float64, of maps (n, h, w) in [0, 1]."""
    unet, abar = double(prior.unet), float(schedule()[tau])
    d = torch.nn.functional.interpolate(
        depth_maps[:, None].double(), (prior.size, prior.size), mode="bilinear", antialias=True
    )
    d = 2 * d - 1
    denoised = 0
    for eta in etas.double():
        noised = abar**0.5 * d + (1 - abar) ** 0.5 * eta
        predicted = unet(noised, torch.full((len(d),), float(tau)).double())
        denoised = denoised + (noised - (1 - abar) ** 0.5 * predicted) / abar**0.5 / len(etas)
    return ((d - denoised) ** 2).mean((1, 2, 3)).numpy()


def test_the_levels_of_a_prior_are_its_losses_on_what_the_head_reads():
    prior, calibration = depth.prior(), Calibration(TIMES, maps().half(), None)
    generator = torch.Generator().manual_seed(0)

    found = prior_levels(calibration, prior)

    for levels, tau in zip(found, (10, 50), strict=True):
        for i in range(len(TIMES)):
            etas = torch.randn(4, 4, 1, prior.size, prior.size, generator=generator)
            expected = prior_loss_of(prior, calibration.depth[:, i], etas, tau)
            np.testing.assert_allclose(levels.means[i], expected.mean(), rtol=1e-4)
            np.testing.assert_allclose(levels.deviations[i], expected.std(ddof=1), rtol=1e-3)


def test_a_calibrated_prior_pulls_by_the_slope_of_its_hinge(monkeypatch):
    drawn, original = [], dag.denoised_prior_loss
    settings = {"consistency_scale": 0.0, "target_scale": 0.0, "depth_prior": depth.prior()}
    model, plain = shifts(steps=1, **settings)
    means, deviations = ((0.002, 0.004), (0.006, 0.003)), ((0.02, 0.04), (0.03, 0.05))
    ends = tuple(LossLevels(TIMES, m, s) for m, s in zip(means, deviations, strict=True))
    monkeypatch.setattr(
        "inner_guidance.nodes.depth_aware_guidance.prior_levels", lambda calibration, prior: ends
    )

    def watch(d, etas, abar, eps):
        drawn.append((etas.clone(), abar))
        return original(d, etas, abar, eps)

    monkeypatch.setattr(dag, "denoised_prior_loss", watch)
    _, found = shifts(steps=1, depth_head=calibrated((1.0, 1.0), (1.0, 1.0)), **settings)

    (x, sigma, whole), (_, _, part), ((etas, abar),) = plain[0], found[0], drawn
    tau = int((schedule() - abar).abs().argmin())
    _, (strong, _) = naive_depth(model, depth.head().head.network, x, sigma, tiny.prompt(0))
    (loss,) = prior_loss_of(depth.prior(), strong.detach()[:, 0], etas[:, 0], tau)
    time = float(model.get_model_object("model_sampling").timestep(sigma.float()))
    mean, deviation = (
        np.interp(tau, (10, 50), [np.interp(time, TIMES, of_end) for of_end in of_ends])
        for of_ends in (means, deviations)
    )
    slope = (loss - mean) / deviation
    assert 0.02 < slope < 0.98
    torch.testing.assert_close(part, slope * whole, rtol=2e-3, atol=1e-6)


def test_a_calibration_is_measured_from_readings():
    strong, weak = (
        torch.rand(20, len(CHECKED_TIMES), 4, 5, generator=torch.Generator().manual_seed(i)) for i in range(2)
    )

    found = calibration_of({"strong": strong, "weak": weak})

    assert found.times == CHECKED_TIMES
    assert torch.equal(found.depth, strong[:16].half())
    losses = ((strong - weak) ** 2).double().numpy().mean((2, 3))
    np.testing.assert_allclose(found.consistency.means, losses.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.consistency.deviations, losses.std(0, ddof=1), rtol=1e-5)
    assert calibration_of({"strong": strong}).consistency is None


def test_the_maps_of_a_large_latent_are_carried_small(tmp_path):
    """Models of pixels have latents as large as images."""
    strong = torch.rand(2, len(CHECKED_TIMES), 4, 2112, generator=torch.Generator().manual_seed(0))

    head = replace(depth.head().head, calibration=calibration_of({"strong": strong}))
    save_depth_head(tmp_path / "head.safetensors", head)

    found = load_depth_head(tmp_path / "head.safetensors").calibration.depth
    expected = torch.nn.functional.interpolate(strong, (1, 512), mode="bilinear", antialias=True)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-3)


def test_a_head_without_a_calibration_says_so_once(caplog):
    sentence = "head_of_test is not calibrated, so consistency and prior steer every"
    with caplog.at_level(logging.INFO):
        depth.depth_guided(tiny.patcher(), depth_prior=depth.prior())
        assert [record.message for record in caplog.records if sentence in record.message] != []
        caplog.clear()
        for settings in (
            {"depth_head": calibrated((1.0, 1.0), (1.0, 1.0)), "depth_prior": depth.prior()},
            {"consistency_scale": 0.0, "target_depth": depth.target()},
            {"mode": "paper"},
        ):
            depth.depth_guided(tiny.patcher(), **settings)
        assert "real images" not in caplog.text
