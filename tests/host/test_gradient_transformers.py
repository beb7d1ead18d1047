"""Gradients in the forward pass of transformers: exact, with blocks that write in place, without a trace."""

import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

from inner_guidance.host.gradients.weights import refuse_quantised
from inner_guidance.tests.support.gradient_reference import (
    assert_is_the_gradient,
    plain,
    random,
    with_gradient,
)
from inner_guidance.tests.support.transformer_passes import FAMILIES, build, pass_inputs

FLOAT32 = {"dtype": torch.float32}


@pytest.fixture
def training(monkeypatch):
    """The kernels of transformers for inference know no float64; in a training, the host computes in it."""
    monkeypatch.setattr(comfy.model_management, "in_training", True)


def gradient(kind, model, inputs, rows=(1,), **kwargs):
    return with_gradient(model, inputs, list(rows), FAMILIES[kind][3], **kwargs)


def assert_same(found, expected, rtol=1e-6):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


@pytest.mark.parametrize("kind", FAMILIES)
def test_is_the_gradient_of_what_the_host_computes(kind, training):
    model, inputs = build(kind), pass_inputs(kind)

    out, found = gradient(kind, model, inputs)

    assert_is_the_gradient(model, inputs, [1], found, step=1e-6, directions=2, blocks=FAMILIES[kind][3])
    assert_same([out], [plain(model, inputs)])
    assert not out.requires_grad
    assert_same(gradient(kind, model, inputs, checkpointing=True), (out, found))


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_output_is_that_of_the_kernels_for_inference(kind):
    model, inputs = build(kind, **FLOAT32), pass_inputs(kind, **FLOAT32)

    out, _ = gradient(kind, model, inputs, checkpointing=True)

    assert_same([out], [plain(model, inputs)], rtol=1e-4)
    assert comfy.model_management.in_training is False
    assert not any("forward" in vars(module) for module in model.modules())


def test_everything_is_put_back_after_an_interrupt():
    model, inputs = build("flux", **FLOAT32), pass_inputs("flux", **FLOAT32)
    seen = []

    def interrupt(args, extra):
        seen.append(comfy.model_management.in_training)
        raise comfy.model_management.InterruptProcessingException

    inputs["transformer_options"]["patches_replace"] = {"dit": {("single_block", 0): interrupt}}
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        gradient("flux", model, inputs, rows=[0, 1], apart=False, checkpointing=True)

    assert seen == [True]
    assert comfy.model_management.in_training is False
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())


def test_nothing_is_kept_behind_the_last_block_read_and_of_other_rows():
    model, inputs = build("flux", **FLOAT32), pass_inputs("flux", **FLOAT32)
    seen = []

    def watch(module, args, kwargs, out):
        out = out[0] if isinstance(out, tuple) else out
        seen.append((len(out), out.requires_grad))

    for block in [*model.diffusion_model.double_blocks, *model.diffusion_model.single_blocks]:
        block.register_forward_hook(watch, with_kwargs=True)
    with_gradient(model, inputs, [1], "b0,b1")

    assert seen == [(1, False)] * 5 + [(1, True)] * 2 + [(1, False)] * 3


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["sd3", "flux", "qwen"])
def test_control_and_replaced_blocks_are_in_the_graph(kind, checkpointing, training):
    """A ControlNet's residuals, constants, and a node that scales the image's tokens of a block in place."""
    model, inputs = build(kind), pass_inputs(kind)
    width = getattr(model.diffusion_model, "inner_dim", None) or model.diffusion_model.hidden_size
    residual = random(2, 12, width, seed=3) * 0.3
    inputs["control"] = {"input": [residual, residual], "output": [residual, residual]}

    def doubled(args, extra):
        out = extra["original_block"](args)
        out["img"].mul_(1.5)
        return out

    inputs["transformer_options"]["patches_replace"] = {"dit": {("double_block", 0): doubled}}
    blocks = "b1"

    _, found = with_gradient(model, inputs, [1], blocks, apart=False, checkpointing=checkpointing)

    assert_is_the_gradient(model, inputs, [1], found, step=1e-6, directions=1, together=True, blocks=blocks)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_a_patch_writes_without_returning_it_is_in_the_model(checkpointing, training):
    """ZImageFunControlnet adds its residual in place, to a part of the sequence, and returns no image."""
    kind, blocks = "zimage", "b1"
    model, inputs = build(kind), pass_inputs(kind)

    def adds(values):
        image, _ = values.pop("img"), values.pop("txt")
        image[:, :12] += values["img_input"][:, :12].sin() * 0.5
        return values

    inputs["transformer_options"]["patches"] = {"noise_refiner": [adds], "double_block": [adds]}

    out, found = with_gradient(model, inputs, [1], blocks, apart=False, checkpointing=checkpointing)

    assert_same([out], [plain(model, inputs)])
    assert_is_the_gradient(model, inputs, [1], found, step=1e-6, directions=1, together=True, blocks=blocks)


def quantised(kind, algorithm, full_precision):
    """The same model with quantised weights, as the host holds them, and with the numbers they stand for."""
    source = build(kind, **FLOAT32)
    operations = comfy.ops.mixed_precision_ops({}, torch.float32, full_precision_mm=full_precision)
    packed = build(kind, **FLOAT32, operations=operations)
    packed.diffusion_model.load_state_dict(source.diffusion_model.state_dict())
    layout = QUANT_ALGOS[algorithm]["comfy_tensor_layout"]
    layers = dict(packed.diffusion_model.named_modules())
    for name, layer in source.diffusion_model.named_modules():
        if isinstance(layer, torch.nn.Linear) and "blocks" in name:
            weight = QuantizedTensor.from_float(layer.weight.data, layout)
            layers[name].quant_format, layers[name].layout_type = algorithm, layout
            layers[name].weight = torch.nn.Parameter(weight, requires_grad=False)
            layer.weight.copy_(weight.dequantize())
    return source, packed


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("algorithm", "full_precision", "cosine"),
    [
        ("float8_e4m3fn", True, 0.99999),
        ("float8_e4m3fn", False, 0.98),
        ("nvfp4", True, 0.99999),
        ("int8_tensorwise", False, 0.999),
    ],
)
def test_quantised_weights_of_the_host(algorithm, full_precision, cosine, checkpointing):
    if algorithm not in QUANT_ALGOS:
        pytest.skip(f"this host has no {algorithm}")
    source, packed = quantised("flux", algorithm, full_precision)
    inputs = pass_inputs("flux", **FLOAT32)
    refuse_quantised(packed.diffusion_model, "Depth-Aware Guidance")
    expected_out, expected = gradient("flux", source, inputs)
    before = plain(packed, inputs)

    out, found = gradient("flux", packed, inputs, checkpointing=checkpointing)

    assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > cosine
    assert torch.cosine_similarity(out.flatten(), expected_out.flatten(), dim=0) > cosine
    assert torch.equal(plain(packed, inputs), before)


class Packed(torch.Tensor):
    """A weight as another pack quantises it: int8 rows with a scale."""


class CastsPacked(comfy.ops.manual_cast.Linear):
    """A layer of ComfyUI-GGUF: the weight becomes numbers whenever the layer runs."""

    def forward_comfy_cast_weights(self, x):
        weight = torch.Tensor(self.weight.as_subclass(torch.Tensor)) * 0.01
        return torch.nn.functional.linear(x, weight.to(x.dtype), self.bias)


def test_weights_that_another_packs_layers_cast_themselves():
    source, packed = build("flux", **FLOAT32), build("flux", **FLOAT32)
    for plain_layer, layer in zip(source.modules(), packed.modules(), strict=True):
        if isinstance(layer, comfy.ops.disable_weight_init.Linear):
            rounded = (layer.weight.data * 100).round()
            plain_layer.weight.copy_(rounded * 0.01)
            layer.__class__ = CastsPacked
            layer.weight = torch.nn.Parameter(rounded.as_subclass(Packed), requires_grad=False)
    inputs = pass_inputs("flux", **FLOAT32)
    refuse_quantised(packed.diffusion_model, "Depth-Aware Guidance")

    assert_same(gradient("flux", packed, inputs), gradient("flux", source, inputs), rtol=1e-4)
    assert type(packed.diffusion_model.double_blocks[0].img_attn.proj.weight.data) is Packed
