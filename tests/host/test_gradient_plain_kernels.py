"""Gradients of transformers whose kernels have none, or are called without transformer_options."""

import threading

import comfy.ldm.modules.attention
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from inner_guidance.host.gradients.forward import evaluate_with_gradient
from inner_guidance.host.taps.blocks import feature_blocks, parse_blocks
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.model_families import FAMILIES

NAMES = ("x", "t", "c_concat", "c_crossattn", "control", "transformer_options")
# The modules that call attention without transformer_options.
CALLING = {
    "ernie": "comfy.ldm.ernie.model",
    "pixart": "comfy.ldm.pixart.blocks",
    "hydit": "comfy.ldm.hydit.attn_layers",
}
pytestmark = pytest.mark.slow


def gradient(name, checkpointing):
    """Of a weighted sum of a block's features with respect to the latent, in the model's first pass."""
    family = FAMILIES[name]
    model = tiny.patcher(name, family.model_type)
    (layer,) = parse_blocks(family.name, feature_blocks(model.model.diffusion_model))
    found = []

    def products(features):
        weights = torch.randn(
            features[layer].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32
        )
        return [features[layer]], [weights]

    def wrapper(executor, *args, **kwargs):
        inputs = dict(zip(NAMES, args, strict=True)) | kwargs
        out, (of_x,) = evaluate_with_gradient(
            executor, range(len(args[0])), [layer], [products], inputs, checkpointing=checkpointing
        )
        found.append(of_x)
        return out

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", wrapper)
    positive, negative = (tiny.prompt(i, **family.values) for i in range(2))
    latent = torch.zeros(1, *family.shape)
    tiny.sample(model, latent, steps=1, cfg=1.0, scheduler="simple", positive=positive, negative=negative)
    return found[0]


def in_another_thread(function):
    """The function, which runs in a thread of its own, as the backward pass does on a GPU."""

    def run(*args, **kwargs):
        results = []
        thread = threading.Thread(target=lambda: results.append(function(*args, **kwargs)))
        thread.start()
        thread.join()
        return results[0]

    return run


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", CALLING)
def test_attention_that_detaches_its_output_is_replaced(name, checkpointing, monkeypatch):
    expected = gradient(name, checkpointing=False)
    kernel = comfy.ldm.modules.attention.optimized_attention
    monkeypatch.setattr(
        f"{CALLING[name]}.optimized_attention", lambda *args, **kwargs: kernel(*args, **kwargs).detach()
    )
    monkeypatch.setattr(torch.autograd, "grad", in_another_thread(torch.autograd.grad))

    found = gradient(name, checkpointing)

    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["cosmos", "joyimage", "ernie"])
def test_blocks_that_run_again_in_another_thread_rotate_with_a_gradient(name, monkeypatch):
    expected = gradient(name, checkpointing=False)
    monkeypatch.setattr(torch.autograd, "grad", in_another_thread(torch.autograd.grad))

    found = gradient(name, checkpointing=True)

    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
