"""What Depth Estimate refuses, before model and VAE work, and how it is interrupted."""

import comfy.model_management
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy.nested_tensor import NestedTensor

from inner_guidance.depth_head.head import DepthHead
from inner_guidance.host.depth.head_training import new_network
from inner_guidance.host.depth.heads import HostedDepthHead, model_family
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.depth_estimates import SMALL, EightfoldVAE, estimate, hosted, latent
from inner_guidance.tests.support.depth_models import latent_head

pytestmark = pytest.mark.oldest_host


def transformer_head(model):
    with torch.inference_mode(False):
        network = new_network(model, "pixel_mlp", "auto", "auto", seed=0).requires_grad_(False).eval()
    return HostedDepthHead.of(DepthHead(network, model_family(model)))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"latent": None}, "has nothing to read depth from: connect latent, or image and vae"),
        ({"image": torch.rand(1, 64, 64, 3)}, "has nothing to read depth from"),
        ({"enlarge": "along edges"}, "no image is connected"),
        ({"image": torch.rand(0, 64, 64, 3)}, "image is empty"),
        ({"image": torch.rand(1, 0, 64, 3)}, "image is empty"),
        (
            {"latent": latent(2, 4, 8, 8), "image": torch.rand(1, 64, 64, 3), "enlarge": "along edges"},
            "1 image cannot belong to 2 maps",
        ),
        ({"latent": latent(0, 4, 8, 8)}, "The batch of images is empty"),
        ({"latent": latent(1, 4, 2, 2)}, r"is 2 x 2, too small .* use images of at least 32 x 32 pixels"),
        ({"latent": None, "image": torch.rand(0, 64, 64, 3), "vae": EightfoldVAE()}, "is empty"),
        ({"latent": None, "image": torch.rand(1, 8, 8, 3), "vae": EightfoldVAE()}, "is 1 x 1, too small"),
        ({"latent": latent(1, 16, 8, 8)}, "is 1 x 16 x 8 x 8, but this model needs images of 4 channels"),
        ({"latent": latent(1, 4, 3, 8, 8)}, "is 1 x 4 x 3 x 8 x 8, but"),
        ({"latent": {"samples": torch.full((1, 4, 8, 8), torch.nan)}}, "values that are not finite"),
        ({"latent": {"samples": NestedTensor([torch.zeros(1, 4, 1, 8, 8)])}}, "holds a video and its sound"),
    ],
)
def test_what_cannot_be_looked_at_is_one_sentence(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        estimate(**given)


class CountingVAE(EightfoldVAE):
    def __init__(self, channels=4):
        self.channels = channels
        self.encoded = 0

    def encode(self, pixels):
        self.encoded += 1
        return super().encode(pixels)[:, :1].repeat(1, self.channels, 1, 1)


FRAMES = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))


def test_a_head_for_another_model_is_refused_before_anything_runs():
    model, vae = tiny.patcher(), CountingVAE()
    seen = tiny.watch(model)
    for given in ({}, {"image": FRAMES, "vae": vae}):
        with pytest.raises(
            ValueError, match=f"made_here reads the features of SDX, but this model is {SMALL}"
        ):
            estimate(model, hosted(family="SDX"), **given)
    assert len(seen) == vae.encoded == 0


def test_a_prompt_that_is_missing_is_said_before_the_images_are_encoded():
    model, vae = tiny.patcher("flux", "FLUX"), CountingVAE(16)
    with pytest.raises(ValueError, match="Flux, cannot be evaluated without a prompt"):
        estimate(model, transformer_head(model), image=FRAMES, vae=vae)
    assert vae.encoded == 0


def test_the_vae_of_another_model_is_refused_at_the_first_image():
    vae = CountingVAE(16)
    with pytest.raises(ValueError, match="is 1 x 16 x 8 x 8, but this model needs images of 4 channels"):
        estimate(image=FRAMES, vae=vae)
    assert vae.encoded == 1


def test_what_the_edges_are_taken_from_is_checked_before_the_model_is_evaluated():
    model = tiny.patcher()
    seen = tiny.watch(model)
    spoilt = FRAMES.clone()
    spoilt[1, 7, 7] = torch.nan
    for image, sentence in (
        (FRAMES, "3 images cannot belong to 4 maps"),
        (spoilt, "image has values that are"),
    ):
        with pytest.raises(ValueError, match=sentence):
            estimate(model, latent=latent(4, 4, 8, 8), image=image, enlarge="along edges")
    assert len(seen) == 0


def test_an_interruption_ends_the_encoding():
    vae = CountingVAE()
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(InterruptProcessingException):
        estimate(image=FRAMES, vae=vae)
    assert vae.encoded == 0


def test_an_interruption_ends_it():
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(InterruptProcessingException):
        estimate()
    assert estimate()[2].isfinite().all()


def test_an_interruption_ends_the_reading_of_latents(monkeypatch, cancel):
    model = tiny.patcher()
    head, read = latent_head(model), []

    def forward(features, time, size):
        cancel()
        read.append(len(features["x0"]))
        return features["x0"][:, :1]

    monkeypatch.setattr(head.head.network, "forward", forward)
    with pytest.raises(InterruptProcessingException):
        estimate(model, head, latent=latent(40, 4, 8, 8))
    assert len(read) == 1


def test_features_that_are_not_finite_are_one_sentence():
    model = tiny.patcher()
    model.set_model_output_block_patch(lambda h, skipped, options: (h * torch.inf, skipped))
    with pytest.raises(ValueError, match="features are not finite at this precision: start ComfyUI with"):
        estimate(model)
