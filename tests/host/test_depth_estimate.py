"""Depth Estimate on tiny models: what is read, how it is averaged, and in which shapes it comes out."""

from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
from comfy.model_management import InterruptProcessingException

from inner_guidance.depth_head.architectures.pixel_mlp import PixelMLP
from inner_guidance.depth_head.architectures.readout import Readout
from inner_guidance.depth_head.head import DepthHead
from inner_guidance.host.depth import estimation
from inner_guidance.host.depth.head_training import new_network
from inner_guidance.host.depth.heads import HostedDepthHead, feature_channels, model_family
from inner_guidance.host.recording.records import Execution, FeatureRecord, FeatureStep, Run
from inner_guidance.host.sampling.frozen_model import with_frozen_model
from inner_guidance.nodes.depth_estimate import InnerDepthEstimate
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.node_defaults import execute

pytestmark = pytest.mark.oldest_host

SMALL = "a UNet of 32 channels with a context of 16"


def hosted(architecture="pixel_mlp", family=SMALL):
    channels = feature_channels(tiny.patcher("small").get_model_object("diffusion_model"))
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(0)
        if architecture == "readout":
            taps = {n: channels[n] for n in ("r0", "r1")}
            network = Readout(taps, ("r1",), ("time", channels["time"]), 128)
        else:
            network = PixelMLP({n: channels[n] for n in ("o0", "o2")}, ("o0", "o2"), ("o0",), (16,))
    return HostedDepthHead.of(DepthHead(network.requires_grad_(False).eval(), family, name="made_here"))


def transformer_head(model):
    with torch.inference_mode(False):
        network = new_network(model, "pixel_mlp", "auto", "auto", seed=0).requires_grad_(False).eval()
    return HostedDepthHead.of(DepthHead(network, model_family(model)))


def latent(*shape, seed=5):
    return {"samples": tiny.noise(*(shape or (1, 4, 16, 16)), seed=seed)}


def estimate(model=None, head=None, **given):
    given = {"model": model or tiny.patcher(), "depth_head": head or hosted(), "ensemble": 1} | given
    if "image" not in given:
        given.setdefault("latent", latent())
    return execute(InnerDepthEstimate, **given)


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


class EightfoldVAE:
    def spacial_compression_encode(self):
        return 8

    def encode(self, pixels):
        assert pixels.shape[1] % 8 == pixels.shape[2] % 8 == 0
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1)[:, [0, 1, 2]], 8)
        return torch.cat([small, small[:, :1]], 1)


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


def test_a_latent_that_was_not_sampled_is_warned_of(caplog):
    """An Empty Latent does not make the node wait for the sampler: it would show the run before."""
    empty = {"9": {"inputs": {"latent": ["5", 0]}}, "5": {"inputs": {"width": 512}}}
    decoded = {"9": {"inputs": {"latent": ["6", 0]}}, "6": {"inputs": {"samples": ["4", 0]}}}
    sampler = {"4": {"inputs": {"model": ["1", 0], "latent_image": ["5", 0]}}, "5": {"inputs": {}}}
    record = FeatureRecord([run_of(0.5, node_id="4", images=1)])

    for nodes in (decoded | sampler, empty):
        node = on_the_canvas(nodes)
        execute(node, model=tiny.patcher(), depth_head=hosted(), latent=latent(), record=record)

    (sentence,) = [r.getMessage() for r in caplog.records if "LATENT" in r.getMessage()]
    assert sentence.startswith("Record Features: the LATENT comes from no sampler that was recorded")


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


# A record of Record Features


def run_of(*depths, node_id="2", images=2):
    """A run with a flat depth of this value at each step; None is a step where none could be read."""
    steps = [
        FeatureStep(number, 1.0, {}, None if depth is None else torch.full((images, 1, 16, 24), depth).half())
        for number, depth in enumerate(depths)
    ]
    for step in steps:
        if step.depth is not None:
            step.depth[1:] += 0.1
    return Run(Execution("prompt", node_id), (images, 4, 16, 24), (128, 192), steps)


def test_a_record_is_a_picture_a_step_and_the_model_does_not_look_again():
    model = tiny.patcher()
    seen = tiny.watch(model)
    record = FeatureRecord([run_of(None, 0.25, 0.5)])
    unused = {"image": torch.rand(2, 64, 96, 3), "vae": EightfoldVAE()}

    picture, mask, depth = estimate(model, record=record, latent=latent(2, 4, 16, 24), style="raw")
    sized, _, _ = estimate(model, record=record, latent=latent(), style="raw", **unused)

    assert len(seen) == 0
    assert depth.shape == (4, 16, 24)
    assert depth.dtype == torch.float32
    assert (mask.shape, picture.shape) == ((4, 128, 192), (4, 128, 192, 3))
    of_each = torch.tensor([0.25, 0.35, 0.5, 0.6])  # the steps, in each the images of the batch
    torch.testing.assert_close(depth.mean(dim=(1, 2)), of_each, rtol=0, atol=1e-3)
    torch.testing.assert_close(picture.mean(dim=(1, 2, 3)), of_each, rtol=0, atol=1e-3)
    assert sized.shape == (4, 64, 96, 3)


def test_a_record_along_the_edges_of_its_images():
    run = run_of(0.25, 0.5)
    for step in run.steps:
        step.depth[..., 12:] += 0.3
    image = torch.zeros(2, 128, 192, 3)
    image[0, :, 88:] = 1  # its edge is not quite where the depth has it
    image[1, :, 104:] = 1

    _, mask, _ = estimate(record=FeatureRecord([run]), latent=latent(), image=image, enlarge="along edges")

    steepest = mask.mean(dim=1).diff(dim=1).argmax(dim=1)
    assert steepest.tolist() == [87, 103] * 2


def on_the_canvas(nodes):
    """The node with the id 9 in a graph."""
    hidden = SimpleNamespace(unique_id="9", dynprompt=SimpleNamespace(get_node=nodes.__getitem__))
    return type("OnTheCanvas", (InnerDepthEstimate,), {"hidden": hidden})


def test_the_latent_tells_which_samplers_run_it_is():
    node = on_the_canvas({"9": {"inputs": {"latent": ["4", 0]}}, "4": {"inputs": {"model": ["1", 0]}}})
    record = FeatureRecord([run_of(0.25), run_of(0.5, node_id="4", images=1), run_of(0.75, node_id="6")])

    _, _, depth = execute(node, model=tiny.patcher(), depth_head=hosted(), latent=latent(), record=record)

    assert torch.equal(depth, torch.full((1, 16, 24), 0.5))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"record": FeatureRecord([run_of(0.5)]), "latent": None}, "connect the LATENT of its sampler"),
        ({"record": FeatureRecord()}, "nothing is recorded. Connect its MODEL to a sampler"),
        (
            {"record": FeatureRecord([run_of(None)])},
            "no depth was recorded in this run. Connect the depth head to Record Features too",
        ),
        (
            {"record": FeatureRecord([run_of(0.5)]), "image": torch.rand(1, 64, 64, 3), "latent": latent()},
            "1 image cannot belong to 2 maps. Connect the decoded image",
        ),
    ],
)
def test_a_record_without_depth_says_what_to_connect(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        estimate(**given)
