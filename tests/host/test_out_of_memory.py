"""Out of memory in a guided step: the error says what to change, and the next prompt runs right."""

import comfy.model_management
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

from inner_guidance.host.keys import TAG
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny

pytestmark = pytest.mark.oldest_host


class Memory:
    """Where a ResBlock runs out of memory; None is nowhere."""

    def __init__(self):
        self.place = None

    def forward(self, original, block, *args, **kwargs):
        if self.place == "forward" and torch.is_grad_enabled():
            self.fail()
        if self.place == "recomputation" and torch._C._current_graph_task_id() >= 0:  # in a backward pass
            self.fail()
        out = original(block, *args, **kwargs)
        if self.place == "backward" and out.requires_grad:
            out.register_hook(self.fail)
        return out

    def fail(self, gradient=None):
        raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.fixture
def memory(monkeypatch):
    found = Memory()
    original = ResBlock.forward
    monkeypatch.setattr(
        ResBlock, "forward", lambda block, *args, **kwargs: found.forward(original, block, *args, **kwargs)
    )
    return found


def state_of(model):
    """What a pass may have changed in a model: tensors, forwards, hooks."""
    return [
        (id(module), sorted(vars(module)), dict(module._forward_hooks), dict(module._forward_pre_hooks))
        for module in model.modules()
    ] + [id(tensor) for tensor in [*model.parameters(), *model.buffers()]]


def with_a_patch(model):
    model = model.clone()
    model.set_model_attn1_output_patch(lambda n, options: n)
    return model


@pytest.mark.parametrize(
    ("place", "checkpointing", "patched", "advice"),
    [
        ("forward", False, False, "turn on checkpointing, or lower the resolution or the batch size. "),
        ("backward", False, False, "turn on checkpointing, or lower the resolution or the batch size. "),
        ("backward", True, False, "gradient: lower the resolution or the batch size. "),
        ("recomputation", True, False, "gradient: lower the resolution or the batch size. "),
        ("backward", True, True, "batch size, or remove other nodes that patch the model, which keep both "),
    ],
)
def test_in_the_differentiated_pass(memory, place, checkpointing, patched, advice):
    model = depth.depth_guided(
        with_a_patch(tiny.patcher()) if patched else tiny.patcher(), checkpointing=checkpointing
    )
    before, state = tiny.sample(model), state_of(model.model)

    memory.place = place
    with pytest.raises(comfy.model_management.OOM_EXCEPTION) as raised:
        tiny.sample(model)
    memory.place = None

    assert str(raised.value).startswith("Depth-Aware Guidance ran out of memory while taking its gradient: ")
    assert advice in str(raised.value)
    assert "every_n_steps" in str(raised.value)
    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)
    assert state_of(model.model) == state
    assert torch.is_inference_mode_enabled()
    assert torch.equal(tiny.sample(model), before)


def test_in_the_extra_pass(memory):
    failing = []

    def patch(n, extra_options):
        if failing and TAG in extra_options:
            memory.fail()
        return n

    model = tiny.patcher()
    model.set_model_attn1_output_patch(patch)
    model = tiny.guided(model)
    before, state = tiny.sample(model), state_of(model.model)

    failing.append(True)
    with pytest.raises(comfy.model_management.OOM_EXCEPTION) as raised:
        tiny.sample(model)
    failing.clear()

    assert str(raised.value) == (
        "Self-Attention Guidance ran out of memory in its extra pass: lower the resolution or the batch "
        "size. A higher every_n_steps saves time, but no memory."
    )
    assert state_of(model.model) == state
    assert torch.equal(tiny.sample(model), before)


def test_any_other_error_is_left_as_it_is():
    def patch(n, extra_options):
        raise KeyError("of another node")

    model = tiny.patcher()
    model.set_model_attn1_output_patch(patch)

    with pytest.raises(KeyError, match="of another node"):
        tiny.sample(depth.depth_guided(model))
