"""Depth Estimate on tiny models: what is read, how it is averaged, and in which shapes it comes out."""

import pytest
import torch

from inner_guidance.host.depth import estimation
from inner_guidance.host.sampling.frozen_model import with_frozen_model
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.depth_estimates import EightfoldVAE, estimate, hosted, latent

pytestmark = pytest.mark.oldest_host


@pytest.mark.parametrize("architecture", ["pixel_mlp", "readout"])
def test_an_estimate_is_the_head_on_the_features(architecture):
    head, model = hosted(architecture), tiny.patcher()
    picture, mask, depth = estimate(model, head, noise_level=0.1)

    time = torch.tensor([100.0])
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    names = list(head.head.network.taps)
    features = with_frozen_model(
        model, None, (1, 4, 16, 16), lambda unet: unet.features(names, latent()["samples"], noise, time)
    )
    expected = head.head.network(features, time, (16, 16))
    torch.testing.assert_close(depth, expected[:, 0])
    assert picture.shape == (1, 128, 128, 3)
    assert mask.shape == (1, 128, 128)
    assert (picture.min(), picture.max()) == (0, 1)
    assert mask.max() - mask.min() < 1  # raw, not stretched


@pytest.mark.parametrize("kind", ["small", "qwen"])
def test_a_latent_head_reads_the_latent_as_it_is(kind):
    model = tiny.patcher(kind, "EPS" if kind == "small" else "FLUX")
    head, passes = depth.latent_head(model), tiny.watch(model)
    shape = (3, 4, 16, 12) if kind == "small" else (3, 16, 1, 16, 12)
    samples = tiny.noise(*shape, seed=5)
    _, _, found = estimate(model, head, latent={"samples": samples}, noise_level=0.5, seed=3)

    given = model.model.process_latent_in(samples).view(3, -1, 16, 12)
    expected = head.head.network({"x0": given}, torch.zeros(3), (16, 12))
    torch.testing.assert_close(found, expected[:, 0])
    assert len(passes) == 0


@pytest.mark.parametrize(("side", "batches"), [(64, [16, 4]), (512, [1] * 20)])
def test_a_latent_head_reads_few_large_latents_at_once(monkeypatch, side, batches):
    """Latents of models of pixels are as large as the image; each pixel takes 1 kB."""
    model = tiny.patcher()
    head, read = depth.latent_head(model), []

    def forward(features, time, size):
        read.append(len(features["x0"]))
        return features["x0"][:, :1]

    monkeypatch.setattr(head.head.network, "forward", forward)
    latents = tiny.noise(20, 4, side, side)
    assert estimation.estimate_depth(model, head, latents, 0.1, 1, 0).shape == (20, 1, side, side)
    assert read == batches


def test_an_ensemble_is_the_mean_whatever_the_batches(monkeypatch):
    alone = [estimate(ensemble=1, latent=latent(seed=s))[2] for s in (5, 6)]
    both = {"samples": torch.cat([latent(seed=s)["samples"] for s in (5, 6)])}
    torch.testing.assert_close(estimate(latent=both)[2], torch.cat(alone), rtol=1e-3, atol=1e-4)

    many = estimate(latent=both, ensemble=5)[2]
    monkeypatch.setattr(estimation, "LARGEST_BATCH", 3)
    torch.testing.assert_close(estimate(latent=both, ensemble=5)[2], many, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(many, torch.cat(alone), atol=1e-4)


def test_seed_and_noise_level_matter():
    first = estimate()[2]
    assert torch.equal(estimate()[2], first)
    assert not torch.equal(estimate(seed=1)[2], first)
    assert not torch.equal(estimate(noise_level=0.5)[2], first)
    clean = estimate(noise_level=0.0)[2]
    assert clean.isfinite().all()
    assert not torch.equal(clean, first)


def test_what_the_model_is_told_matters():
    assert not torch.equal(estimate(positive=tiny.prompt(0))[2], estimate(positive=tiny.prompt(1))[2])


@pytest.mark.parametrize("shape", [(1, 4, 8, 24), (3, 4, 17, 9), (1, 4, 2, 3)])
def test_every_shape_of_latent(shape):
    picture, mask, depth = estimate(latent=latent(*shape))
    batch, _, height, width = shape
    assert depth.shape == (batch, height, width)
    assert mask.shape == (batch, 8 * height, 8 * width)
    assert picture.shape == (batch, 8 * height, 8 * width, 3)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_grey_image_is_read_as_the_same_in_three_channels(channels):
    """The second of two is alpha."""
    grey = torch.rand(1, 32, 32, channels, generator=torch.Generator().manual_seed(0))
    found = [
        estimate(image=image, vae=EightfoldVAE(), enlarge="along edges")[0]
        for image in (grey, grey[..., :1].repeat(1, 1, 1, 3))
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("enlarge", ["smooth", "along edges"])
@pytest.mark.parametrize("shape", [(2, 64, 100, 3), (1, 77, 61, 4), (1, 30, 20, 3)])
def test_every_shape_of_image(shape, enlarge):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    picture, mask, depth = estimate(image=image, vae=EightfoldVAE(), enlarge=enlarge, style="ember")
    assert picture.shape == (*shape[:3], 3)
    assert mask.shape == shape[:3]
    assert depth.shape == (shape[0], *(max(1, round(side / 8)) for side in shape[1:3]))


def test_a_patched_model_is_read_as_patched():
    patched = tiny.patcher()
    patched.set_model_output_block_patch(lambda h, hsp, options: (3 * h, hsp))
    assert not torch.allclose(estimate(patched)[2], estimate()[2], atol=1e-4)
