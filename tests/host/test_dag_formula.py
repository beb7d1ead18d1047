"""One step of Depth-Aware Guidance in the host's sampler, against a naive float64 forward and backward."""

import numpy as np
import pytest
import torch

from inner_guidance.depth_head.prior import schedule
from inner_guidance.guidance import depth_aware as dag
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.naive_depth import double, gradient_of, naive_depth
from inner_guidance.tests.support.reference_blur import blur_matrix

pytestmark = pytest.mark.oldest_host

CFG = 4.0


class Seen:
    """What a post-CFG function behind ours is told: the step's latent, estimates and shift."""

    def __init__(self, model):
        self.steps = []
        model.set_model_sampler_post_cfg_function(self)

    def __call__(self, args):
        plain = args["uncond_denoised"] + CFG * (args["cond_denoised"] - args["uncond_denoised"])
        self.steps.append(
            {
                "x": args["input"].clone(),
                "sigma": args["sigma"].clone(),
                "deviation": args["cond_denoised"].double().numpy().std(ddof=1),
                "shift": (args["denoised"] - plain).clone(),
            }
        )
        return args["denoised"]


def run(model_type="EPS", steps=3, latent=None, denoise=1.0, **settings):
    model = tiny.patcher(model_type=model_type)
    guided = depth.depth_guided(model, **settings)
    seen = Seen(guided)
    tiny.sample(guided, latent, steps=steps, cfg=CFG, sampler="euler_ancestral", denoise=denoise)
    return model, seen.steps


def noise_given_to(monkeypatch, loss):
    """The noise and the abar that this loss of the prior is given, a pair a step."""
    drawn = []
    loss_of_prior = getattr(dag, loss)
    monkeypatch.setattr(
        dag,
        loss,
        lambda d, noise, abar, eps: drawn.append((noise.clone(), abar)) or loss_of_prior(d, noise, abar, eps),
    )
    return drawn


def gradient_of_target(d, target, sigma):
    """Of the share of the blurred depth's variance that a * target + b leaves, 0.5 <= a <= 2."""
    with torch.inference_mode(False), torch.enable_grad():
        matrix = blur_matrix(*d.shape[-2:], sigma).clone()
        leaf = d.detach().clone().requires_grad_()
        y, t = leaf.flatten() @ matrix, target.clone().flatten() @ matrix
        a = float(np.polyfit(t.numpy(), y.detach().numpy(), 1)[0])
        fit = min(max(a, 0.5), 2.0) * (t - t.mean()) + y.detach().mean()
        loss = (y - fit).square().sum() / (y - y.mean()).square().sum()
    return gradient_of(loss, leaf)


def timestep(model, sigma):
    """Of a sigma, from 0 to 999, between the steps of the schedule too."""
    log_sigmas = model.get_model_object("model_sampling").log_sigmas.numpy()
    return float(np.interp(np.log(sigma), log_sigmas, np.arange(1000)))


def relative_error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("model_type", ["EPS", "V_PREDICTION", "FLOW"])
def test_robust_consistency_is_the_naive_gradient_as_a_shift(model_type):
    network = depth.head().head.network
    model, steps = run(model_type)

    for step in steps[:2]:
        leaf, (strong, weak) = naive_depth(model, network, step["x"], step["sigma"], tiny.prompt(0))
        with torch.inference_mode(False), torch.enable_grad():
            loss = ((strong.detach() - weak) ** 2).mean()
        g = gradient_of(loss, leaf).numpy()
        sigma = float(step["sigma"])
        signal = 1 - sigma if model_type == "FLOW" else 1.0
        share = sigma / np.sqrt(sigma**2 + signal**2)
        expected = -dag.ROBUST_STEP * share * step["deviation"] * g / np.sqrt((g**2).mean())
        assert relative_error(step["shift"], torch.from_numpy(expected)) < 1e-3


def test_paper_moves_the_mean_of_the_ancestral_step():
    network = depth.head().head.network
    model, steps = run(mode="paper", consistency_scale=10.0)
    sigmas = [float(step["sigma"]) for step in steps] + [0.0]

    for step, sigma, following in zip(steps[:2], sigmas, sigmas[1:], strict=False):
        leaf, (strong, weak) = naive_depth(model, network, step["x"], step["sigma"], tiny.prompt(0))
        with torch.inference_mode(False), torch.enable_grad():
            loss = 40 * 10 * ((strong.detach() - weak) ** 2).mean()
        g = gradient_of(loss, leaf)
        # x_vp = x / sqrt(1 + sigma^2); the mean of x_vp at the next step moves by -grad_{x_vp} L.
        move = -g * (1 + sigma**2) ** 0.5 * (1 + following**2) ** 0.5
        arrived = step["shift"].double() * (1 - (following / sigma) ** 2)
        assert relative_error(arrived, move) < 1e-3


def test_paper_mode_differentiates_the_prior(monkeypatch):
    network, prior = depth.head().head.network, depth.prior()
    drawn = noise_given_to(monkeypatch, "prior_loss")
    model, steps = run(steps=1, mode="paper", consistency_scale=0.0, prior_scale=10.0, depth_prior=prior)

    ((step,), ((eta, abar),)) = steps, drawn
    tau = int((schedule() - abar).abs().argmin())
    leaf, (strong, _) = naive_depth(model, network, step["x"], step["sigma"], tiny.prompt(0))
    unet, eta = double(prior.unet), eta.double()
    with torch.inference_mode(False), torch.enable_grad():
        eta = eta.clone()
        noisy = abar**0.5 * (2 * strong - 1) + (1 - abar) ** 0.5 * eta
        loss = 40 * 10 * ((eta - unet(noisy, torch.tensor([float(tau)]).double())) ** 2).mean()
    g = gradient_of(loss, leaf)
    # The only step: sigma_next is 0, and the shift arrives whole.
    assert relative_error(step["shift"], -g * (1 + float(step["sigma"]) ** 2) ** 0.5) < 1e-3


def test_prior_and_target_share_the_backward_pass(monkeypatch):
    calls = []
    grad = torch.autograd.grad

    def count(outputs, inputs, *args, **kwargs):
        calls.append(getattr(inputs, "shape", None))
        return grad(outputs, inputs, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", count)
    network, prior = depth.head().head.network, depth.prior()
    drawn = noise_given_to(monkeypatch, "denoised_prior_loss")
    model, steps = run(
        steps=1,
        consistency_scale=0.0,
        prior_scale=0.7,
        target_scale=0.2,
        depth_prior=prior,
        target_depth=depth.target(),
    )
    monkeypatch.undo()
    assert calls.count((1, 4, 16, 16)) == 1  # with respect to the latent

    (step,) = steps
    leaf, (strong, _) = naive_depth(model, network, step["x"], step["sigma"], tiny.prompt(0))
    ((etas, abar),) = drawn
    assert len(etas) == dag.PRIOR_NOISES
    tau = int((schedule() - abar).abs().argmin())
    low, high = dag.PRIOR_LEVELS
    assert 1000 * low <= tau <= 1000 * high
    unet = double(prior.unet)
    s = strong.detach()
    of_prior = 0
    for eta in etas.double():
        noisy = abar**0.5 * (2 * s - 1) + (1 - abar) ** 0.5 * eta
        of_prior = of_prior + unet(noisy, torch.tensor([float(tau)]).double()) - eta
    t = torch.nn.functional.interpolate(
        depth.target().clone().double()[..., 0].unsqueeze(1), (16, 16), mode="bilinear", antialias=True
    )
    of_target = gradient_of_target(s, t, sigma=0.01)
    asked = 0.7 * of_prior / of_prior.square().mean().sqrt()
    asked = asked + 0.2 * dag.TARGET_WEIGHT * of_target / of_target.square().mean().sqrt()
    with torch.inference_mode(False):
        (g,) = torch.autograd.grad(strong, leaf, asked.clone())
    sigma = float(step["sigma"])
    size = float(asked.square().mean().sqrt())
    expected = -dag.ROBUST_STEP * sigma / (1 + sigma**2) ** 0.5 * step["deviation"] * size * g
    expected = expected / g.square().mean().sqrt()
    assert relative_error(step["shift"], expected) < 1e-3


@pytest.mark.parametrize("denoise", [1.0, 0.5])
@pytest.mark.parametrize("model_type", ["EPS", "V_PREDICTION", "FLOW"])
def test_a_target_is_blurred_less_in_every_step_until_it_ends(model_type, denoise):
    network = depth.head().head.network
    greys = torch.rand(1, 16, 24, 1, generator=torch.Generator().manual_seed(5))
    picture = ((greys - greys.min()) / (greys.max() - greys.min())).expand(-1, -1, -1, 3)
    model, steps = run(
        model_type,
        steps=8,
        latent=torch.zeros(1, 4, 16, 24) if denoise == 1 else tiny.noise(1, 4, 16, 24, seed=3),
        denoise=denoise,
        consistency_scale=0.0,
        target_scale=1.0,
        target_depth=picture,
        target_end_percent=0.5,
        target_blur=0.125,
    )

    sigmas = [float(step["sigma"]) for step in steps]
    times = [sigma if model_type == "FLOW" else timestep(model, sigma) / 999 for sigma in sigmas]
    blurs = []
    for step, sigma, time in zip(steps, sigmas, times, strict=True):
        percent = 1 - time / times[0]
        if percent >= 0.5:
            assert step["shift"].abs().max() < 1e-5
            continue
        blurs.append(16 / 8 * (1 - percent / 0.5))
        leaf, (strong, _) = naive_depth(model, network, step["x"], step["sigma"], tiny.prompt(0))
        pull = gradient_of_target(strong, picture[..., 0].double().unsqueeze(1), blurs[-1])
        with torch.inference_mode(False):
            (g,) = torch.autograd.grad(strong, leaf, pull.clone())
        signal = 1 - sigma if model_type == "FLOW" else 1.0
        share = sigma / (sigma**2 + signal**2) ** 0.5
        expected = -dag.ROBUST_STEP * dag.TARGET_WEIGHT * share * step["deviation"] * g
        assert relative_error(step["shift"], expected / g.square().mean().sqrt()) < 1e-3
    assert len(blurs) >= 3
    assert blurs[0] == pytest.approx(2.0)
    assert blurs[-1] < 0.7
