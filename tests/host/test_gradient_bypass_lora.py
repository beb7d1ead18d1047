"""Gradients through LoRAs in bypass mode, which replace the forward of a layer."""

import pytest
import torch

from inner_guidance.host.gradients.patches import has_foreign_forward
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.gradient_reference import (
    assert_is_the_gradient,
    build,
    pass_inputs,
    with_gradient,
)

adapters = pytest.importorskip("comfy.weight_adapter")
if not hasattr(adapters, "BypassInjectionManager"):
    pytest.skip("this host has no bypass mode", allow_module_level=True)

RANK = 2


def lora_of(model, dtype):
    """Adapters by the name of the weight: for every linear layer and every convolution."""
    generator = torch.Generator().manual_seed(3)

    def weight(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype) * 0.1

    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            up, down = weight(module.out_features, RANK), weight(RANK, module.in_features)
        elif isinstance(module, torch.nn.Conv2d):
            up = weight(module.out_channels, RANK, 1, 1)
            down = weight(RANK, module.in_channels, *module.kernel_size)
        else:
            continue
        found[f"{name}.weight"] = adapters.LoRAAdapter(set(), (up, down, float(RANK), None, None, None))
    return found


def bypass(model, dtype):
    """What the host injects while the model is loaded."""
    manager = adapters.BypassInjectionManager()
    for name, adapter in lora_of(model, dtype).items():
        assert adapter.weights[0].is_inference()
        manager.add_adapter(name, adapter, strength=0.8)
    return manager.create_injections(model)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("cast", [False, True], ids=["weights as they are", "weights cast at use"])
def test_the_gradient_is_exact(cast, checkpointing):
    model = build()
    if cast:
        for module in model.modules():
            if hasattr(module, "comfy_cast_weights"):
                module.comfy_cast_weights = True
    (injection,) = bypass(model, torch.float64)
    injection.inject(None)
    replaced = {module: vars(module)["forward"] for module in model.modules() if "forward" in vars(module)}
    inputs = pass_inputs(model)

    _, gradient = with_gradient(model, inputs, [2, 3], checkpointing=checkpointing)

    assert_is_the_gradient(model, inputs, [2, 3], gradient, directions=2)
    assert replaced == {
        module: vars(module)["forward"] for module in model.modules() if "forward" in vars(module)
    }
    injection.eject(None)


def test_guidance_is_that_of_the_same_lora_on_the_weights():
    def in_bypass_mode(model):
        model.set_injections("bypass_lora", bypass(model.model, torch.float32))
        return model

    def on_the_weights(model):
        names = model.add_patches(lora_of(model.model, torch.float32), 0.8)
        assert names
        return model

    def run(with_lora, guide):
        return depth.sampled(guide=guide, model=with_lora(tiny.patcher()), steps=2)

    plain, guided = (run(in_bypass_mode, guide) for guide in (False, True))
    expected = run(on_the_weights, True)

    assert (plain - depth.sampled(guide=False, steps=2)).norm() > 0.01 * plain.norm()
    assert (guided - expected).norm() < 0.01 * (guided - plain).norm()
    assert not any(has_foreign_forward(module) for module in tiny.patcher().model.modules())
