"""The demo transformer: it learns from its loss, and every guidance and its own heads work on it."""

import comfy.model_management
import pytest
import torch

import nodes as stock
from inner_guidance.demo import model as demo
from inner_guidance.demo.denoisers import TextToFlow
from inner_guidance.demo.text import CONTEXT_LENGTH
from inner_guidance.host.depth.heads import reads_latents, require_head_fits
from inner_guidance.nodes.classifier_guidance import InnerClassifierGuidance
from inner_guidance.nodes.demo_model import FAMILIES, InnerLoadDemoModel
from inner_guidance.nodes.depth_aware_guidance import InnerDepthAwareGuidance
from inner_guidance.nodes.depth_estimate import InnerDepthEstimate
from inner_guidance.nodes.self_attention_guidance import InnerSelfAttentionGuidance
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.node_defaults import execute


@pytest.fixture
def in_training(monkeypatch):
    """As in a process that trains."""
    monkeypatch.setattr(comfy.model_management, "in_training", True)
    with torch.inference_mode(False), torch.enable_grad():
        yield


def test_an_untrained_model_predicts_nothing_and_learns_from_its_loss(in_training):
    torch.manual_seed(0)
    model = TextToFlow(demo.read_weights(demo.WEIGHTS / demo.TEXT_FILE))
    x0, tokens = torch.full((4, 4, 8, 8), 2.0), torch.ones(4, CONTEXT_LENGTH, dtype=torch.long)

    assert model.loss(x0, tokens).item() == pytest.approx(1 + 2.0**2, rel=0.1)  # the mean of (e - x0)^2

    optimiser = torch.optim.SGD(model.transformer.parameters(), 0.05)
    for _ in range(30):
        optimiser.zero_grad()
        model.loss(x0, tokens).backward()
        optimiser.step()
    assert model.loss(x0, tokens).item() < 2
    assert all(parameter.grad is None for parameter in model.text.parameters())


@pytest.fixture(scope="module")
def loaded():
    with torch.inference_mode():
        return InnerLoadDemoModel.execute("transformer").args


@pytest.fixture(scope="module")
def sample(loaded):
    def sample(model):
        positive, negative = (
            stock.CLIPTextEncode().encode(loaded[1], text)[0] for text in ("red sphere", "")
        )
        latent = stock.EmptyLatentImage().generate(256, 256, 1)[0]  # the size that it has learned
        settings = (5, 8, 3.0, "euler", "simple", positive, negative, latent)
        return stock.KSampler().sample(model, *settings)[0]["samples"]

    return sample


@pytest.fixture(scope="module")
def plain(sample, loaded):
    with torch.inference_mode():
        return sample(loaded[0])


def test_the_node_offers_both_families():
    assert tuple(demo.FAMILIES) == FAMILIES


def test_it_draws_other_images_than_the_unet(plain, sample):
    tiny.assert_steered(plain, sample(InnerLoadDemoModel.execute().args[0]))


def test_self_attention_guidance_steers_it(loaded, sample, plain):
    guided = execute(InnerSelfAttentionGuidance, model=loaded[0], scale=2.0)[0]

    tiny.assert_steered(sample(guided), plain)


def test_depth_aware_guidance_brings_its_depth_closer_to_the_target(loaded, sample, plain):
    model, clip, _, head, *_ = loaded
    (prompt,) = stock.CLIPTextEncode().encode(clip, "red sphere")
    settings = {"consistency_scale": 0.0, "prior_scale": 0.0, "target_scale": 1.0}
    guided = execute(
        InnerDepthAwareGuidance, model=model, depth_head=head, target_depth=depth.target(), **settings
    )[0]
    target = torch.linspace(1, 0, 16).expand(16, 16).flatten()

    def likeness(samples):
        given = {"model": model, "depth_head": head, "latent": {"samples": samples}, "positive": prompt}
        _, mask, _ = execute(InnerDepthEstimate, **given)
        small = torch.nn.functional.interpolate(mask[:, None], (16, 16), mode="area").flatten()
        return torch.corrcoef(torch.stack([small, target]))[0, 1]

    assert likeness(sample(guided)) > likeness(plain) + 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_latent_head_fits_both_families(family):
    model, *_, latent_head = InnerLoadDemoModel.execute(family).args

    assert reads_latents(latent_head.head)
    require_head_fits(latent_head.head, model)


def test_the_latent_head_steers_it(loaded, sample, plain):
    settings = {"consistency_scale": 0.0, "prior_scale": 0.0, "target_scale": 1.0}
    guided = execute(
        InnerDepthAwareGuidance,
        model=loaded[0],
        depth_head=loaded[6],
        target_depth=depth.target(),
        **settings,
    )[0]

    tiny.assert_steered(sample(guided), plain)


def test_classifier_guidance_steers_it(loaded, sample, plain):
    guided = execute(
        InnerClassifierGuidance, model=loaded[0], classifier_head=loaded[5], class_name="blue box", scale=5.0
    )[0]

    tiny.assert_steered(sample(guided), plain)
