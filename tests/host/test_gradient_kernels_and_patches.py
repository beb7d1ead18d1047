"""Gradients through attention kernels without a backward pass, other nodes' patches, compiled blocks."""

import comfy.ldm.modules.attention
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch

from inner_guidance.tests.support.gradient_reference import (
    assert_is_the_gradient,
    build,
    pass_inputs,
    random,
    with_gradient,
)
from inner_guidance.tests.support.tiny_configs import CONTEXT

pytestmark = pytest.mark.oldest_host


@torch.library.custom_op("inner_guidance_test::attention", mutates_args=())
def without_a_formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    return attention_pytorch(q, k, v, heads).clone()


def cut_off(attention, q, k, v, heads, **kwargs):
    """As sage attention: another kernel, which autograd does not see."""
    return attention_pytorch(q.detach(), k.detach(), v.detach(), heads, **kwargs).detach()


def custom_operator(attention, q, k, v, heads, **kwargs):
    """As flash attention in the host."""
    return without_a_formula(q, k, v, heads)


@pytest.mark.parametrize("override", [cut_off, custom_operator])
def test_an_attention_without_backward_gets_that_of_plain_attention(override):
    model = build()
    inputs = pass_inputs(model)
    expected = with_gradient(model, inputs, [2, 3])
    inputs["transformer_options"]["optimized_attention_override"] = override

    found = with_gradient(model, inputs, [2, 3])

    torch.testing.assert_close(found[1], expected[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)


def test_the_hosts_own_kernel_is_replaced_where_a_gradient_is_wanted(monkeypatch):
    model = build()
    inputs = pass_inputs(model)
    expected = with_gradient(model, inputs, [2, 3])
    modes = []

    @comfy.ldm.modules.attention.wrap_attn
    def sage(q, k, v, heads, **kwargs):
        modes.append(torch.is_inference_mode_enabled())
        return cut_off(None, q, k, v, heads)

    monkeypatch.setattr(comfy.ldm.modules.attention, "optimized_attention", sage)
    monkeypatch.setattr(comfy.ldm.modules.attention, "optimized_attention_masked", sage)
    _, gradient = with_gradient(model, inputs, [2, 3])

    torch.testing.assert_close(gradient, expected[1], rtol=1e-9, atol=1e-12)
    assert True in modes  # the other half
    assert False in modes  # behind the last layer that is read


def test_an_override_that_computes_something_else_keeps_its_own_gradient():
    model = build()
    inputs = pass_inputs(model)
    inputs["transformer_options"]["optimized_attention_override"] = (
        lambda attention, q, k, v, *args, **kwargs: attention(1.7 * q, k, v, *args, **kwargs) + 0.2 * q
    )

    _, gradient = with_gradient(model, inputs, [2, 3])

    assert_is_the_gradient(model, inputs, [2, 3], gradient)


def test_keys_that_another_node_has_prepared_may_be_inference_tensors():
    """As IPAdapter and regional prompts hand them to cross-attention."""
    model = build()
    inputs = pass_inputs(model)
    prompt = random(1, 5, CONTEXT, seed=40)
    assert prompt.is_inference()
    inputs["transformer_options"]["patches"] = {
        "attn2_patch": [lambda n, *_: (n, prompt.expand(len(n), -1, -1), prompt.expand(len(n), -1, -1))]
    }

    _, gradient = with_gradient(model, inputs, [2, 3])

    assert_is_the_gradient(model, inputs, [2, 3], gradient)


def adapter(width):
    """As IPAdapter: attention to an image beside that to the prompt, by a network that a loader has made."""
    network = torch.nn.Linear(CONTEXT, width, dtype=torch.float64)
    tokens = random(1, 4, CONTEXT, seed=41)

    def replaced(q, k, v, extra_options):
        heads = extra_options["n_heads"]
        image = network(tokens).expand(len(q), -1, -1)
        return attention_pytorch(q, k, v, heads) + attention_pytorch(q, image, image, heads) * tokens.std()

    assert network.weight.is_inference()
    return {"attn2": {("middle", 0): replaced}}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_patches_that_bring_tensors_of_their_own_are_in_the_gradient(checkpointing):
    model = build()
    inputs = pass_inputs(model)
    gates = random(64, 4, 6, seed=42).exp()
    assert gates.is_inference()
    inputs["transformer_options"] |= {
        "patches_replace": adapter(64),
        "patches": {"input_block_patch": [lambda h, _: h * gates if h.shape[1:] == gates.shape else h]},
    }

    _, gradient = with_gradient(model, inputs, [2, 3], checkpointing=checkpointing)

    assert_is_the_gradient(model, inputs, [2, 3], gradient, directions=2)


def test_a_compiled_model_runs_as_it_was_written():
    model = build()
    inputs = pass_inputs(model)
    expected = with_gradient(model, inputs, [2, 3])
    compiled_graphs = []

    def backend(graph, example_inputs):
        compiled_graphs.append(graph)
        return graph

    block = model.diffusion_model.input_blocks[1][0]  # of one block only: tracing takes long
    block.in_layers = torch.compile(block.in_layers, backend=backend, dynamic=False)
    try:
        found = with_gradient(model, inputs, [2, 3])
    finally:
        torch._dynamo.reset()

    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert not compiled_graphs
