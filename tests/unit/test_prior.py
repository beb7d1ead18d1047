"""depth_head/prior.py with a stand-in for the host's UNet."""

import itertools
import math

import pytest
import torch

from inner_guidance.depth_head import prior
from inner_guidance.depth_head.prior_report import draw_prior_report


class Pixelwise(torch.nn.Module):
    """Predicts noise pixel by pixel: enough for maps of one grey."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 1), torch.nn.SiLU(), torch.nn.Conv2d(16, 1, 1)
        )
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape, generator=generator) * 0.2

    def forward(self, x, timesteps):
        noise = (1 - prior.schedule().float()[timesteps.long()]).sqrt().view(-1, 1, 1, 1).expand_as(x)
        return self.layers(torch.cat([x, noise, x * noise], dim=1))


class Pressed(BaseException):
    """As the host's in 0.30.0: no Exception."""


def train(depths=None, steps=60, seed=0, on_step=lambda done, losses: None, **settings):
    unet = Pixelwise()
    depths = torch.full((4, 1, 24, 32), 0.8) if depths is None else depths
    settings = {"batch_size": 8, "learning_rate": 0.02} | settings
    losses = prior.train_prior(unet, depths, 16, steps=steps, seed=seed, on_step=on_step, **settings)
    return unet, losses


def test_the_schedule_is_stable_diffusions():
    abar = prior.schedule()

    assert len(abar) == 1000
    torch.testing.assert_close(abar[[0, -1]], torch.tensor([0.99915, 0.0046600]).double(), rtol=1e-3, atol=0)


def test_depth_is_squeezed_to_the_priors_square_and_scaled():
    depth = torch.rand(2, 1, 40, 24, requires_grad=True)

    seen = prior.to_prior(depth, 8)

    assert seen.shape == (2, 1, 8, 8)
    torch.testing.assert_close(seen.mean(), depth.mean() * 2 - 1, rtol=0, atol=0.02)
    assert torch.autograd.grad(seen.sum(), depth)[0].abs().min() > 0
    assert torch.equal(prior.to_prior(depth[..., :8, :8], 8), depth[..., :8, :8] * 2 - 1)


def test_training_learns_what_the_maps_look_like():
    unet, losses = train(steps=400)

    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    drawn = prior.draw(prior.DepthPrior(unet, 16), 3, seed=1)
    assert drawn.shape == (3, 1, 16, 16)
    torch.testing.assert_close(drawn.mean(), torch.tensor(0.8), rtol=0, atol=0.08)


def test_the_trained_weights_are_frozen_and_an_average():
    unet, after = Pixelwise(), []

    def on_step(done, losses):
        after.append(next(unet.parameters()).detach().clone())
        if done == 20:
            raise Pressed

    prior.train_prior(
        unet,
        torch.rand(2, 1, 16, 16),
        16,
        steps=1000,
        batch_size=4,
        learning_rate=0.02,
        seed=0,
        on_step=on_step,
        interruption=Pressed,
    )

    average = after[0]
    for done, weight in enumerate(after[1:]):
        kept = (1 + done) / (10 + done)
        average = kept * average + (1 - kept) * weight
    found = next(unet.parameters())
    torch.testing.assert_close(found, average)
    assert (found - after[-1]).abs().max() > 1e-3
    assert not found.requires_grad
    assert not unet.training


def test_maps_are_mirrored_and_never_upside_down():
    class Recording(Pixelwise):
        seen = ()

        def forward(self, x, timesteps):
            self.seen = (*self.seen, x.detach())
            return super().forward(x, timesteps)

    unet = Recording()
    depths = torch.zeros(1, 1, 16, 16)
    depths[..., :8, :8] = 1  # of the upper half, the left
    prior.train_prior(
        unet, depths, 16, steps=8, batch_size=64, learning_rate=1e-3, seed=0, on_step=lambda *_: None
    )

    mean = torch.cat(unet.seen).mean(dim=0)[0]
    upper_left, upper_right, lower = mean[:8, :8].mean(), mean[:8, 8:].mean(), mean[8:].mean()
    torch.testing.assert_close(upper_left, upper_right, rtol=0, atol=0.1)
    assert upper_left > lower + 0.3
    assert upper_right > lower + 0.3


def test_a_seed_is_a_training():
    assert train(seed=3, steps=5)[1] == train(seed=3, steps=5)[1]
    assert train(seed=3, steps=5)[1] != train(seed=4, steps=5)[1]


@pytest.mark.parametrize("place", ["on_step", "unet"])
@pytest.mark.parametrize("steps", [1, 3])
def test_an_interruption_anywhere_keeps_what_was_learned(place, steps):
    def at(where, done):
        if where == place and done == steps:
            raise Pressed

    class Interrupted(Pixelwise):
        calls = 0

        def forward(self, x, timesteps):
            at("unet", self.calls)
            self.calls += 1
            return super().forward(x, timesteps)

    unet = Interrupted()
    losses = prior.train_prior(
        unet,
        torch.full((4, 1, 24, 32), 0.8),
        16,
        steps=1000,
        batch_size=8,
        learning_rate=0.02,
        seed=0,
        on_step=lambda done, losses: at("on_step", done),
        interruption=Pressed,
    )

    untrained = Pixelwise().state_dict()
    assert len(losses) == steps
    assert not any(torch.equal(weight, untrained[name]) for name, weight in unet.state_dict().items())
    assert not unet.training
    assert not any(weight.requires_grad for weight in unet.parameters())


def test_an_interruption_before_the_first_step_is_passed_on():
    def on_step(done, losses):
        raise Pressed

    with pytest.raises(Pressed):
        train(on_step=on_step, interruption=Pressed)


def test_the_learning_rate_warms_up_and_falls():
    shares = [prior.learning_rate_share(step, 100) for step in range(100)]

    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a >= b for a, b in itertools.pairwise(shares[4:]))
    assert shares[-1] == pytest.approx(0.03, abs=0.001)
    assert prior.learning_rate_share(0, 1) == 1


@pytest.mark.parametrize("steps", [1, 2, 199, 1001])
def test_the_report_shows_the_curve_and_the_maps(steps):
    losses = [1 / (1 + i / 50) for i in range(steps)]
    maps = torch.linspace(0, 1, 3).view(3, 1, 1, 1).expand(3, 1, 8, 8)

    picture = draw_prior_report(losses, maps)

    assert picture.shape[0] == 1
    assert picture.shape[2:] == (768, 3)
    assert picture.isfinite().all()
    tile = picture[0, -100]
    assert [
        math.isclose(float(tile[x, 0]), grey, abs_tol=0.01) for x, grey in ((50, 0), (400, 0.5), (700, 1))
    ]
