"""Models on a device that is not the CPU: nothing of the pack stays behind on the CPU."""

from dataclasses import replace
from functools import cache
from importlib.util import find_spec

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from inner_guidance.depth_head.architectures import STRONG, WEAK
from inner_guidance.depth_head.training import LEVELS
from inner_guidance.host.depth.calibration import calibration_of
from inner_guidance.host.depth.heads import HostedDepthHead
from inner_guidance.host.gradients import weights
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.classifier_models import classifier_guided
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
    shape = 3, len(LEVELS), 8, 8
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
