"""The host makes room for trainings of networks of our own: it may have filled the device with models."""

import comfy.model_management
import pytest
import torch

from inner_guidance.depth_head.architectures.latent import LatentDepth
from inner_guidance.depth_head.architectures.readout import Readout
from inner_guidance.host.depth import head_training, priors
from inner_guidance.nodes.train_depth_prior import InnerTrainDepthPrior
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.depth_head_runs import pairs, train
from inner_guidance.tests.support.node_defaults import execute
from inner_guidance.tests.support.readout_reference import SD15_CHANNELS, SDXL_CHANNELS

pytestmark = pytest.mark.oldest_host


def kept_bytes(network, *inputs):
    """Of what a pass of all branches keeps for its backward pass, without the weights."""
    network.train().requires_grad_(True)
    branches = getattr(network, "branch_taps", None)
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor, storage.nbytes()  # the tensor, so that its place stays taken
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.branches(*inputs, tuple(branches)) if branches else network(*inputs)
    return sum(size for _, size in kept.values())


@pytest.mark.parametrize(("batch", "side"), [(2, 32), (1, 64)])
def test_the_room_is_twice_what_a_backward_pass_needs(batch, side):
    with torch.inference_mode(False):
        maps, time = torch.rand(batch, 4, side, side), torch.full((batch,), 300.0)
        head = kept_bytes(LatentDepth(4), {"x0": maps}, time, (side, side))
        prior = kept_bytes(priors.make_unet(), maps[:, :1], time)

    pixels = batch * side**2
    assert 2 * head == pytest.approx(head_training.BYTES_PER_PIXEL * pixels, rel=0.05)
    assert 2 * prior == pytest.approx(priors.BYTES_PER_PIXEL * pixels, rel=0.05)


@pytest.fixture
def asked(monkeypatch):
    """What the host is asked to make free, in bytes, and where."""
    found, original = [], comfy.model_management.free_memory
    monkeypatch.setattr(
        comfy.model_management,
        "free_memory",
        lambda *args, **kwargs: found.append(args) or original(*args, **kwargs),
    )
    return found


def test_room_for_a_latent_head(asked):
    train(architecture="latent", steps=1, batch_size=3)
    latent = 16 * 12
    assert (head_training.BYTES_PER_PIXEL * 3 * latent, torch.device("cpu")) in asked


def test_room_for_a_prior(asked):
    execute(InnerTrainDepthPrior, depths=pairs(3), steps=1, batch_size=3, size="32")
    assert (priors.BYTES_PER_PIXEL * 3 * 32**2, torch.device("cpu")) in asked


@pytest.mark.parametrize("channels", [SD15_CHANNELS, SDXL_CHANNELS], ids=["SD 1.x", "SDXL"])
def test_what_the_backward_pass_of_a_readout_head_needs(channels):
    side = 16
    with torch.inference_mode(False):
        network = Readout({f"r{i}": wide for i, wide in enumerate(channels)}, ["r6"], ("time", 1280))
        # By their widths, blocks are at the latent's resolution, a half, and a quarter.
        sides = {320: side, 640: side // 2, 1280: side // 4}
        maps = {f"r{i}": torch.rand(1, wide, sides[wide], sides[wide]) for i, wide in enumerate(channels)}
        kept = kept_bytes(
            network, maps | {"time": torch.rand(1, 1280)}, torch.full((1,), 300.0), (side, side)
        )

    assert kept == pytest.approx(head_training.READOUT_BYTES_PER_PIXEL * len(channels) * side**2, rel=0.05)


def test_room_for_a_readout_head(monkeypatch):
    """Besides the room for the passes; ComfyUI's estimate for 3 images is 0.9 MB here, the head needs 24."""
    asked, original = [], comfy.model_management.load_models_gpu

    def load_models_gpu(models, **memory):
        asked.append(memory["minimum_memory_required"])
        return original(models, **memory)

    model, latent = tiny.patcher("small"), 16 * 12
    monkeypatch.setattr(model.model, "memory_usage_factor", 0.01)
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", load_models_gpu)
    train(model, architecture="readout", steps=1, batch_size=3)

    passes = model.model.memory_required([3, 4, 16, 12])
    needed = head_training.READOUT_BYTES_PER_PIXEL * 4 * 3 * latent
    assert asked[-1] >= passes + needed > 20 * passes
