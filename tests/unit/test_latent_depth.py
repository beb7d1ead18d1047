"""The latent head's network, and what stands in for clean estimates in its training."""

import json

import pytest
import torch
import torch.nn.functional as F

from inner_guidance.depth_head.architectures import architecture_of, build
from inner_guidance.depth_head.architectures.latent import ESTIMATE, LatentDepth
from inner_guidance.depth_head.estimates import blurred, stand_in
from inner_guidance.depth_head.metrics import DepthRange
from inner_guidance.depth_head.training import TrainingSettings, train


def network(channels=4, **config):
    torch.manual_seed(0)
    return LatentDepth(channels, **config).eval()


def depth_of(net, x0, time=100.0):
    with torch.no_grad():
        return net({ESTIMATE: x0}, torch.full((len(x0),), time), x0.shape[-2:])


@pytest.mark.parametrize("channels", [4, 16, 128])
@pytest.mark.parametrize("size", [(1, 6), (7, 9), (32, 24)])
def test_any_channels_and_sizes(channels, size):
    depth = depth_of(network(channels), torch.randn(2, channels, *size))
    assert depth.shape == (2, 1, *size)
    assert 0 < depth.min() < depth.max() < 1


def test_it_is_small():
    assert 300_000 < sum(p.numel() for p in network().parameters()) < 500_000


def test_rows_of_a_batch_do_not_touch_and_precision_is_the_networks():
    net, x0 = network(), torch.randn(3, 4, 12, 10)
    whole = depth_of(net, x0)
    torch.testing.assert_close(depth_of(net, x0[1:2]), whole[1:2], rtol=1e-4, atol=1e-5)
    assert torch.equal(depth_of(net, x0.half()), depth_of(net, x0.half().float()))


def test_it_knows_the_time():
    net, x0 = network(), torch.randn(1, 4, 12, 10)
    assert not torch.allclose(depth_of(net, x0, 0.0), depth_of(net, x0, 700.0), atol=1e-4)


def test_a_network_is_made_again_from_its_config():
    net, x0 = network(16, widths=(8, 16)), torch.randn(1, 16, 5, 6)
    again = build(architecture_of(net), json.loads(json.dumps(net.config))).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(depth_of(again, x0), depth_of(net, x0))
    assert (again.taps, again.branch_taps) == ({"x0": 16}, {"strong": ("x0",)})


def latents(count=12, side=16):
    """Smooth, as latents are."""
    white = torch.randn(count, 2, side, side, generator=torch.Generator().manual_seed(0))
    return 5 * F.avg_pool2d(F.pad(white, [2] * 4, mode="reflect"), 5, stride=1)


def test_every_image_is_blurred_by_its_own_gaussian():
    point = torch.zeros(3, 2, 15, 15)
    point[:, :, 7, 7] = 1
    g = torch.tensor([1.0, 1.2, 1.5])
    spread = blurred(point, g)

    distance = torch.arange(15.0) - 7
    for image, deviation in zip(spread, g, strict=True):
        bell = torch.exp(-(distance**2) / (2 * deviation**2))
        expected = bell[:, None] * bell / bell.sum() ** 2
        torch.testing.assert_close(image, expected.expand(2, -1, -1), rtol=0, atol=2e-3)


def test_edges_are_continued():
    """A ramp stays one, and its ends do not mix."""
    ramp = torch.linspace(0, 1, 12).expand(1, 1, 9, 12)
    torch.testing.assert_close(blurred(ramp, torch.tensor([1.0])), ramp, rtol=0, atol=0.08)


def test_a_stand_in_is_the_latent_without_noise_and_loses_detail_with_it():
    x0 = latents()
    eta = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))

    def error(time, shares):
        made = stand_in(x0, eta, torch.full((12,), time), torch.tensor(shares).expand(12, 2), 2.0)
        return made - x0

    assert error(0.0, (1.0, 1.0)).abs().max() < 1e-4
    torch.testing.assert_close(error(500.0, (0.0, 1.0)), 0.5 * 0.3 * 2.0 * eta, rtol=0, atol=1e-4)
    blur_alone = error(800.0, (1.0, 0.0))
    assert (blur_alone * x0).mean() < -0.05  # what is lost is a part of x0
    assert error(400.0, (1.0, 0.0)).square().mean() < 0.7 * blur_alone.square().mean()


def test_a_network_of_one_branch_learns():
    x0 = latents(12)
    labels = x0[:, :1].sigmoid()
    net = network(2, widths=(8, 8))

    def features(rows, at, seeds):
        return {ESTIMATE: x0[rows]}

    result = train(
        net, features, labels, TrainingSettings(60, 4, 5e-3, 0, DepthRange(1, 10)), lambda *_: None
    )
    assert sum(result.losses[-10:]) < 0.6 * sum(result.losses[:10])
    assert list(result.figures) == ["strong"]
