"""depth_head/architectures/running_norm: normalisation that learns from single images."""

import torch
from torch import nn

from inner_guidance.depth_head.architectures.pixel_mlp import PixelMLP
from inner_guidance.depth_head.architectures.running_norm import EPSILON, RunningNorm


def batches(count, images=1):
    """Every image has a mean and a spread of its own."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return [
        draw(images, 3, 4, 5) * draw(images, 1, 1, 1).exp() + 3 * draw(images, 3, 1, 1) for _ in range(count)
    ]


def test_learns_the_statistics_of_everything_it_saw():
    norm = RunningNorm(3, affine=False, momentum=0.01).train()
    seen = batches(50)
    for batch in seen:
        norm(batch)
    everything = torch.cat(seen).double()
    torch.testing.assert_close(norm.running_mean.double(), everything.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        norm.running_var.double(), everything.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-4
    )


def test_forgets_what_is_long_past():
    norm = RunningNorm(3, momentum=0.1).train()
    for batch in batches(20):
        norm(batch)
    for batch in batches(200):
        norm(batch + 1000)
    assert (norm.running_mean - 1000).abs().max() < 10


def test_computes_the_same_in_training_and_estimation():
    norm = RunningNorm(3).train()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    for batch in batches(10):
        in_training = norm.train()(batch)
        torch.testing.assert_close(norm.eval()(batch), in_training, rtol=1e-4, atol=1e-5)


def test_takes_its_statistics_for_constants():
    """The gradient is that of a scale and a shift, so the mean of a single image can be learned."""
    norm = RunningNorm(3).train()
    for batch in batches(5):
        x = batch.requires_grad_()
        norm(x).sum().backward()
        scale = (norm.running_var + EPSILON).rsqrt().view(1, -1, 1, 1)
        torch.testing.assert_close(x.grad, scale.expand_as(x))


def test_of_the_first_batch_is_batch_norm():
    (batch,) = batches(1, images=4)
    torch.testing.assert_close(
        RunningNorm(3).train()(batch), nn.BatchNorm2d(3).train()(batch), rtol=1e-4, atol=1e-5
    )


def mean_depth_error(norm):
    """A pixel MLP of one feature, trained on single images whose depth is their feature's mean."""
    torch.manual_seed(0)
    network = PixelMLP({"f": 1}, strong=("f",), weak=("f",), widths=(16,))
    for layer in network.modules():
        for name, child in list(layer.named_children()):
            if isinstance(child, RunningNorm):
                setattr(layer, name, norm(len(child.running_mean), affine=child.weight is not None))
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    generator = torch.Generator().manual_seed(0)

    def image():
        depth = torch.rand(1, generator=generator)
        return {"f": depth + 0.1 * torch.randn(1, 1, 8, 8, generator=generator)}, depth

    for _ in range(300):
        given, depth = image()
        loss = (network(given, torch.zeros(1), (8, 8)) - depth).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()
    with torch.no_grad():
        errors = [
            (network(given, torch.zeros(1), (8, 8)).mean() - depth).abs()
            for given, depth in (image() for _ in range(100))
        ]
    return float(sum(errors) / len(errors))


def test_batch_size_1_learns_how_deep_an_image_is_on_the_whole():
    """Guessing the mean of a uniform depth is off by 1/4. Plain BatchNorm does not do better."""
    assert mean_depth_error(RunningNorm) < 0.06
    assert mean_depth_error(nn.BatchNorm2d) > 0.15
