"""Gradients through weights that the host casts, patches and overwrites at use, and in other precisions."""

import comfy.ops
import pytest
import torch

from inner_guidance.host.gradients.weights import refuse_quantised
from inner_guidance.tests.support.gradient_reference import (
    assert_is_the_gradient,
    build,
    pass_inputs,
    random,
    with_gradient,
)

pytestmark = pytest.mark.oldest_host


def cast_weights(model):
    """As the host does it for offloaded and for half-precision weights."""
    for module in model.modules():
        if isinstance(module, comfy.ops.CastWeightBiasOp):
            module.comfy_cast_weights = True


@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_that_are_cast_at_use_give_the_same_gradient(checkpointing):
    model = build()
    inputs = pass_inputs(model)
    expected = with_gradient(model, inputs, [2, 3])
    cast_weights(model)

    found = with_gradient(model, inputs, [2, 3], checkpointing=checkpointing)

    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert not any("forward" in vars(module) for module in model.modules())


def pad_by_the_other_edge(conv):
    """As nodes for seamless textures do it."""

    def conv_forward(x, weight, bias):
        across = torch.nn.functional.pad(x, (1, 1, 0, 0), mode="circular")
        return torch.nn.functional.conv2d(
            torch.nn.functional.pad(across, (0, 0, 1, 1)), weight, bias, conv.stride
        )

    conv._conv_forward = conv_forward


def pad_by_reflection(conv):
    conv.padding_mode = "reflect"


@pytest.mark.parametrize("change", [pad_by_the_other_edge, pad_by_reflection])
def test_convolutions_that_another_node_pads_differently(change):
    model = build()
    cast_weights(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.padding == (1, 1):
            change(module)
    inputs = pass_inputs(model)

    _, gradient = with_gradient(model, inputs, [2, 3])

    assert_is_the_gradient(model, inputs, [2, 3], gradient, directions=2)


def test_a_cast_weight_is_not_kept_for_the_backward_pass(monkeypatch):
    """Whatever the host's buffer holds by then: here it is overwritten as soon as the layer has run."""
    model = build()
    inputs = pass_inputs(model)
    expected = with_gradient(model, inputs, [2, 3])
    cast_weights(model)
    cast, uncast = comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight

    def into_a_buffer(s, *args, **kwargs):
        weight, bias, stream = cast(s, *args, **kwargs)
        return weight.clone(), None if bias is None else bias.clone(), stream

    def overwrite(s, weight, bias, stream):
        uncast(s, weight, bias, stream)
        weight.data.fill_(torch.nan)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", into_a_buffer)
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", overwrite)

    _, gradient = with_gradient(model, inputs, [2, 3])

    torch.testing.assert_close(gradient, expected[1], rtol=1e-9, atol=1e-12)


def test_patches_on_the_fly_are_in_the_gradient():
    """LoRAs on weights that are not in the GPU's memory are applied whenever the layer runs."""
    model, baked = build(), build()
    for one, other in zip(model.modules(), baked.modules(), strict=True):
        if isinstance(one, (torch.nn.Linear, torch.nn.Conv2d)):
            delta = random(*one.weight.shape, seed=30) * 0.05
            one.weight_function = [lambda weight, delta=delta: weight + delta]
            other.weight.add_(delta)
    inputs = pass_inputs(model)

    found, expected = with_gradient(model, inputs, [2, 3]), with_gradient(baked, inputs, [2, 3])

    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("storage", "compute"), [("float16", "float32"), ("float8_e4m3fn", "float32")])
def test_weights_stored_in_another_precision_than_the_computation(storage, compute):
    storage, compute = getattr(torch, storage), getattr(torch, compute)
    model, stored = build(dtype=compute), build(dtype=torch.float16, compute=compute)
    stored.diffusion_model.to(storage)
    for parameter, source in zip(model.parameters(), stored.parameters(), strict=True):
        parameter.copy_(source.to(compute))
    inputs = pass_inputs(model, dtype=compute)

    _, expected = with_gradient(model, inputs, [2, 3])
    _, found = with_gradient(stored, inputs, [2, 3])

    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("dtype", "cosine"), [(torch.bfloat16, 0.98), (torch.float16, 0.998)])
def test_models_that_compute_in_half_precision(dtype, cosine):
    model, exact = build(dtype=dtype), build(dtype=torch.float32)
    for (name, source), parameter in zip(model.named_parameters(), exact.parameters(), strict=True):
        if "to_q" in name:  # the peaked attention of these models makes much of every rounding
            source.mul_(0.05)
        parameter.copy_(source.float())
    inputs = pass_inputs(exact, dtype=torch.float32)

    _, expected = with_gradient(exact, inputs, [2, 3])
    _, found = with_gradient(model, inputs, [2, 3])

    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > cosine


class Packed(torch.Tensor):
    """A quantised weight of the host or of another pack."""


def test_quantised_weights_are_refused():
    model = build()
    refuse_quantised(model, "Depth-Aware Guidance")
    linear = model.diffusion_model.time_embed[0]
    linear.weight = torch.nn.Parameter(linear.weight.data.as_subclass(Packed), requires_grad=False)

    with pytest.raises(ValueError, match=r"quantised weights of this model \(Packed\) do not give"):
        refuse_quantised(model, "Depth-Aware Guidance")
