"""A guided run, also one that fails, leaves patcher, model, host and PyTorch as they were."""

import comfy.ldm.modules.attention
import comfy.model_management
import pytest
import torch

from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.classifier_models import classifier_guided
from inner_guidance.tests.support.left_state import changed, state_of
from inner_guidance.tests.support.recorded_runs import record_attention, record_features

pytestmark = pytest.mark.oldest_host

SMALL = torch.zeros(1, 4, 8, 8)
NODES = {
    "SAG": tiny.guided,
    "DAG": lambda model: depth.depth_guided(model, target_depth=depth.target(), depth_prior=depth.prior()),
    "DAG, checkpointed": lambda model: depth.depth_guided(model, checkpointing=True),
    "DAG by a latent head": lambda model: depth.depth_guided(model, depth_head=depth.latent_head(model)),
    "Classifier Guidance": classifier_guided,
    "Record Attention": lambda model: record_attention(model)[0],
    "Record Features": lambda model: record_features(model)[0],
    "all": lambda model: record_attention(
        record_features(classifier_guided(depth.depth_guided(tiny.guided(model))))[0]
    )[0],
}


class FailsBackward(torch.autograd.Function):
    """The identity, whose backward pass raises."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("backward")


def raising(error, at_call):
    """A patch of a block that raises at this call."""
    calls = []

    def patch(x, extra_options):
        calls.append(0)
        if len(calls) == at_call:
            raise error
        return x

    return patch


INTERRUPTED = comfy.model_management.InterruptProcessingException
# How a run ends: a patch in each block, of which the model has three, and whether it raises.
ENDS = {
    "well": lambda: lambda x, extra_options: x,
    "at once": lambda: raising(RuntimeError("first"), 1),
    "in a block that comes later": lambda: raising(RuntimeError("later"), 5),
    "interrupted": lambda: raising(INTERRUPTED(), 4),
    "out of memory": lambda: raising(comfy.model_management.OOM_EXCEPTION("memory"), 8),
    "in the backward pass": lambda: lambda x, extra_options: FailsBackward.apply(x),
}
DIFFERENTIATED = ("DAG", "DAG, checkpointed", "Classifier Guidance", "all")
QUICK = (("all", "well"), ("all", "in the backward pass"))
CASES = [
    pytest.param(node, end, marks=() if (node, end) in QUICK else pytest.mark.slow)
    for node in NODES
    for end in ENDS
    if node in DIFFERENTIATED or end != "in the backward pass"
]


def samples_or_error(model):
    try:
        return tiny.sample(model, SMALL)
    except (RuntimeError, INTERRUPTED, comfy.model_management.OOM_EXCEPTION) as error:
        return error


@pytest.mark.parametrize(("node", "end"), CASES)
def test_all_is_as_before(node, end):
    base = tiny.patcher()
    base.set_model_attn2_output_patch(ENDS[end]())
    guided = NODES[node](base)
    tiny.sample(tiny.patcher(), SMALL)
    before = state_of(base, guided)

    result = samples_or_error(guided)

    assert isinstance(result, torch.Tensor) == (end == "well")
    assert changed(before, state_of(base, guided)) == []


ATTENTION = comfy.ldm.modules.attention
# What could be left, as (object, attribute, value); the test undoes it.
LEFT = {
    "a hook": lambda unet: (unet, "_forward_hooks", {0: print}),
    "a tensor on a block": lambda unet: (unet.middle_block[1], "kept", torch.zeros(1)),
    "a flag on a block": lambda unet: (unet.middle_block[1], "training", True),
    "the host's attention": lambda unet: (ATTENTION, "optimized_attention", print),
    "a class of the host": lambda unet: (ATTENTION.BasicTransformerBlock, "forward", print),
    "the host's switch": lambda unet: (comfy.model_management, "in_training", True),
}


@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT)
def test_what_is_left_of_host_and_model_is_seen(left, monkeypatch):
    model = tiny.patcher()
    before = state_of(model)

    monkeypatch.setattr(*left(model.model.diffusion_model), raising=False)

    assert len(changed(before, state_of(model))) in (1, 2)


@pytest.mark.parametrize(
    "leave",
    [
        lambda model: model.add_wrapper_with_key("apply_model", "key", print),
        lambda model: model.set_model_attn1_patch(print),
        lambda model: torch.randn(1),
    ],
    ids=["a wrapper", "a patch", "random numbers"],
)
def test_what_is_left_of_the_patcher_is_seen(leave):
    model = tiny.patcher()
    before = state_of(model)

    leave(model)

    assert changed(before, state_of(model)) != []
