"""PyTorch before 2.6 cannot run a compiled model uncompiled, so it is refused before anything is done."""

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from inner_guidance.nodes.depth_estimate import InnerDepthEstimate
from inner_guidance.nodes.train_classifier_head import InnerTrainClassifierHead
from inner_guidance.nodes.train_depth_head import InnerTrainDepthHead
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.classifier_models import classifier_guided
from inner_guidance.tests.support.node_defaults import execute

IMAGES = torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(0))
# Without a VAE: nothing is encoded either.
TRAINED = {"vae": None, "images": IMAGES, "blocks": "m0"}
NODES = {
    "Depth-Aware Guidance": lambda model: tiny.sample(depth.depth_guided(model), steps=1),
    "Classifier Guidance": lambda model: tiny.sample(classifier_guided(model), steps=1),
    "Train Depth Head": lambda model: execute(InnerTrainDepthHead, model=model, depths=IMAGES, **TRAINED),
    "Train Classifier Head": lambda model: execute(
        InnerTrainClassifierHead, model=model, class_names="a * 2\nb * 2", **TRAINED
    ),
    "Depth Estimate": lambda model: execute(
        InnerDepthEstimate, model=model, depth_head=depth.head(), latent={"samples": tiny.noise()}
    ),
}


@pytest.fixture
def old_pytorch(monkeypatch):
    monkeypatch.delattr(torch.compiler, "set_stance")


def compiled_by_the_host(model):
    """TorchCompileModel's wrapper, for the name that it has."""
    model.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL, "torch.compile", lambda executor, *args, **kwargs: executor(*args, **kwargs)
    )


def compiled_by_another_pack(model):
    """A block in place of the model's own, with the attribute that torch.compile gives it."""
    block = torch.nn.Module()
    block._orig_mod = model.get_model_object("diffusion_model").middle_block
    model.add_object_patch("diffusion_model.middle_block", block)


@pytest.mark.parametrize("compiled", [compiled_by_the_host, compiled_by_another_pack])
@pytest.mark.parametrize("node", NODES)
def test_a_compiled_model_is_refused_before_anything_is_done(node, compiled, old_pytorch):
    model = tiny.patcher()
    compiled(model)
    watched = tiny.watch(model)

    with pytest.raises(ValueError, match=rf"^{node} needs PyTorch 2\.6 or later with torch\.compile: update"):
        NODES[node](model)

    assert len(watched) == 0


def test_an_uncompiled_model_is_guided(old_pytorch):
    depth.assert_steers(steps=1)
