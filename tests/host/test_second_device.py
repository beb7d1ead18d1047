"""Models on a device that is not the CPU: nothing of the pack stays behind on the CPU."""

from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from inner_guidance.depth_head.architectures import STRONG, WEAK
from inner_guidance.depth_head.training import CHECKED_TIMES
from inner_guidance.host.depth.calibration import calibration_of
from inner_guidance.host.depth.heads import HostedDepthHead
from inner_guidance.host.gradients import weights
from inner_guidance.host.keys import WRAPPER_KEY
from inner_guidance.nodes.attention_maps import InnerAttentionMaps
from inner_guidance.nodes.attention_spectrum import InnerAttentionSpectrum
from inner_guidance.nodes.depth_estimate import InnerDepthEstimate
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.classifier_models import classifier_guided
from inner_guidance.tests.support.node_defaults import execute
from inner_guidance.tests.support.second_device import CPU, DEVICE, OTHER, MixedDevicesError, second_device

several_gpus = pytest.mark.skipif(
    find_spec("comfy.multigpu") is None, reason="this host has no multi-GPU evaluation"
)
# The CPU has attention kernels of its own.
ROUNDING = 1e-3
FREE = 2**40
RUN = {"noise_mask": torch.ones(1, 1, 16, 16), "steps": 1}


def load(patchers, **memory):
    for one in patchers:
        one.model.to(one.load_device)


@pytest.fixture(autouse=True)
def host(monkeypatch):
    """The host's own loading asks a device for its memory."""
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", load)
    monkeypatch.setattr(
        comfy.model_management,
        "get_free_memory",
        lambda device=None, torch_free_too=False: (FREE, FREE) if torch_free_too else FREE,
    )
    monkeypatch.setattr(weights, "is_plain", lambda t: True)
    with torch.inference_mode(False), torch.no_grad():
        yield


@cache
def root(device):
    """A tiny model of its own on a device, shared by these tests."""
    model = tiny.root.__wrapped__("small", "EPS", 0, torch.float32)
    model.model.to(device)
    model.load_device = device
    return model


def patcher(device=CPU):
    return root(device).clone()


@cache
def plain():
    """Samples without guidance."""
    return tiny.sample(patcher(), **RUN)


def test_tensors_of_two_devices_do_not_meet():
    with second_device():
        there = torch.zeros(3, device=DEVICE)

        with pytest.raises(MixedDevicesError):
            there + torch.ones(3)
        assert (there + torch.ones(())).device == DEVICE
        assert (there.cpu() + torch.ones(3)).tolist() == [1, 1, 1]


def sag(model):
    model = tiny.guided(model, mask="random", space="v")
    return tiny.guided(model, mask="high frequency")


def dag(model, **settings):
    target_mask = torch.ones(1, 8, 8)
    return depth.depth_guided(
        model, depth_prior=depth.prior(), target_depth=depth.target(), target_mask=target_mask, **settings
    )


def calibrated(hosted):
    """The head with the levels of some images."""
    shape = 3, len(CHECKED_TIMES), 8, 8
    readings = {branch: tiny.noise(*shape, seed=seed) for seed, branch in enumerate((STRONG, WEAK))}
    return HostedDepthHead.of(replace(hosted.head, calibration=calibration_of(readings)))


GUIDED = {
    "sag": sag,
    "dag": lambda model: dag(model, depth_head=calibrated(depth.readout_head())),
    "dag, paper": lambda model: dag(model, mode="paper", checkpointing=True),
    "dag, latent": lambda model: dag(model, depth_head=depth.latent_head(model), consistency_scale=0.0),
    "classifier": classifier_guided,
}


@pytest.mark.parametrize("guide", GUIDED.values(), ids=GUIDED)
def test_guided_runs(guide):
    expected = tiny.sample(guide(patcher()), **RUN)
    with second_device():
        found = tiny.sample(guide(patcher(DEVICE)), **RUN)

    assert (found - expected).norm() < ROUNDING * expected.norm()
    tiny.assert_steered(expected, plain())


@pytest.fixture
def default_device(monkeypatch):
    """The device is the one that the host uses for models."""
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: DEVICE)
    with second_device():
        yield


def test_records(default_device):
    model, attention = rec.record_attention(patcher(DEVICE))
    model, features = rec.record_features(model, depth_head=depth.head())
    tiny.sample(model, steps=1)

    assert len(rec.steps_of(attention)) == len(rec.steps_of(features)) == 1


def colours(images):
    """What a VAE would encode: the colours, and their mean, of an eighth of the resolution."""
    small = torch.nn.functional.avg_pool2d(images.movedim(-1, 1), 8)
    return torch.cat([small, small.mean(1, keepdim=True)], dim=1)


VAE = SimpleNamespace(encode=colours, spacial_compression_encode=lambda: 8)
# By node: what it gives for images, a mask and a latent, as a list of tensors.
SHOWN = {
    "Attention Maps": lambda model, images, mask, latent: rec.shown(
        InnerAttentionMaps, rec.attention_record("positive"), image=images, legend=False
    ),
    "Attention Spectrum": lambda model, images, mask, latent: rec.shown(
        InnerAttentionSpectrum, rec.attention_record("positive"), image=images, objects=mask
    )[:1],
    "Depth Estimate": lambda model, images, mask, latent: execute(
        InnerDepthEstimate,
        model=model,
        depth_head=depth.head(),
        latent={"samples": latent},
        image=images,
        enlarge="along edges",
    ),
    "Depth Estimate of an image": lambda model, images, mask, latent: execute(
        InnerDepthEstimate, model=model, depth_head=depth.head(), image=images, vae=VAE
    ),
    "Depth Estimate of a latent": lambda model, images, mask, latent: execute(
        InnerDepthEstimate, model=model, depth_head=depth.latent_head(model), latent={"samples": latent}
    ),
}


@pytest.mark.parametrize("node", SHOWN)
def test_images_masks_and_latents_on_the_device(node, default_device):
    """As with --gpu-only, where the VAE and the samplers leave them there."""
    images = torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    given = images, torch.ones(2, 64, 64), tiny.noise(2, 4, 16, 16)

    found = SHOWN[node](patcher(DEVICE), *(t.to(DEVICE) for t in given))

    for one, expected in zip(found, SHOWN[node](patcher(DEVICE), *given), strict=True):
        torch.testing.assert_close(one.cpu(), expected.cpu(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("head", [depth.head, depth.readout_head])
def test_depth_by_a_head_on_another_device_than_the_model(head):
    """As with the host's Select Model Device: heads are loaded where the host loads models."""
    latent = {"samples": tiny.noise(2, 4, 16, 16)}
    _, _, expected = execute(InnerDepthEstimate, model=patcher(), depth_head=head(), latent=latent)
    with second_device():
        model = patcher(DEVICE)

        _, _, found = execute(InnerDepthEstimate, model=model, depth_head=head(), latent=latent)

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("head", [depth.head, depth.readout_head])
def test_a_head_is_loaded_whole_where_memory_is_short(head, default_device):
    hosted = head()

    for extra_memory in (0.1, -(2**20)):  # what the host gives with --novram, and on a device that is full
        hosted.patcher.partially_load(DEVICE, extra_memory)

        assert {t.device for t in hosted.head.network.state_dict().values()} == {DEVICE}


@pytest.fixture
def two_devices():
    """A model with the host's multi-GPU evaluation; the latent's device does not get the positive."""

    def evaluate(executor, x, timestep, model_options, seed):
        return executor(x, timestep, model_options | {"multigpu_clones": models}, seed)

    with second_device():
        models = {device: patcher(device) for device in (OTHER, DEVICE)}
        for one in models.values():
            one.pre_run()
        model = models[DEVICE].clone()
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", evaluate)
        yield model


@several_gpus
@pytest.mark.slow
@pytest.mark.parametrize("guide", [sag, dag, classifier_guided])
def test_the_prompt_that_is_read_is_on_another_device_than_the_latent(guide, two_devices):
    found = tiny.sample(guide(two_devices), **RUN)

    expected = tiny.sample(guide(patcher()), **RUN)
    assert (found - expected).norm() < ROUNDING * expected.norm()
    tiny.assert_steered(expected, plain())


@several_gpus
def test_records_of_a_prompt_on_another_device_than_the_latent(two_devices):
    model, attention = rec.record_attention(two_devices)
    model, features = rec.record_features(model, depth_head=depth.head())
    tiny.sample(model, steps=1)

    assert len(rec.steps_of(attention)) == len(rec.steps_of(features)) == 1


@pytest.fixture
def split(monkeypatch):
    """The host's MultiGPU CFG Split, on a machine with two devices."""
    import comfy.multigpu

    devices = [CPU, DEVICE]
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda exclude_current: devices)

    def prepare(model):
        return comfy.multigpu.create_multigpu_deepclones(model, 2)

    return prepare


def loadable():
    """A model that can be loaded again, as the host's loaders give it."""
    model = patcher()
    model.cached_patcher_init = (tiny.root.__wrapped__, ("small", "EPS", 0, torch.float32))
    return model


@several_gpus
@pytest.mark.parametrize("recorded_first", [True, False])
def test_recorded_depth_of_a_model_that_is_split_among_gpus(recorded_first, split):
    head = depth.head()
    model = loadable() if recorded_first else split(loadable())
    model, _ = rec.record_features(model, depth_head=head)
    model = split(model) if recorded_first else model

    model.match_multigpu_clones()  # as the host does when a run begins

    (on_device,) = model.get_additional_models_with_key("multigpu")
    (copied,) = on_device.get_additional_models_with_key(WRAPPER_KEY)
    assert (on_device.load_device, copied.load_device) == (DEVICE, DEVICE)
    assert copied.model is not head.head.network
    for name, weight in head.head.network.state_dict().items():
        assert torch.equal(copied.model.state_dict()[name], weight)


@several_gpus
def test_recorded_depth_of_a_model_that_is_moved_afterwards(default_device):
    """The host's Select Model Device gives the model a copy of the head, and loads that alone."""
    model, record = rec.record_features(loadable(), depth_head=depth.head())

    tiny.sample(model.deepclone_multigpu(new_load_device=CPU), steps=1)

    assert [step.depth is None for step in rec.steps_of(record)] == [False]


@several_gpus
def test_depth_by_a_model_that_is_split_among_gpus(split):
    given = {"depth_head": depth.head(), "latent": {"samples": tiny.noise(2, 4, 16, 16)}}

    found = execute(InnerDepthEstimate, model=split(loadable()), **given)

    for one, expected in zip(found, execute(InnerDepthEstimate, model=patcher(), **given), strict=True):
        assert torch.equal(one, expected)
