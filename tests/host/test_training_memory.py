"""The host makes room for trainings of networks of our own: it may have filled the device with models."""

import comfy.model_management
import pytest
import torch

from inner_guidance.depth_head.architectures.latent import LatentDepth
from inner_guidance.host.depth import head_training, priors
from inner_guidance.nodes.train_depth_prior import InnerTrainDepthPrior
from inner_guidance.tests.support.depth_head_runs import pairs, train
from inner_guidance.tests.support.node_defaults import execute

pytestmark = pytest.mark.oldest_host


def kept_bytes(network, *inputs):
    """Of what a pass keeps for its backward pass, without the weights."""
    network.train().requires_grad_(True)
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor, storage.nbytes()  # the tensor, so that its place stays taken
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(*inputs)
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
