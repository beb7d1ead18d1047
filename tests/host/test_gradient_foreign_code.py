"""Gradients through code of other nodes: patches that overwrite tensors, forwards that they have replaced."""

import comfy_extras.nodes_freelunch as freelunch
import pytest
import torch

from inner_guidance.host.gradients.patches import run_foreign
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.gradient_reference import (
    assert_is_the_gradient,
    build,
    pass_inputs,
    plain,
    with_gradient,
)
from inner_guidance.tests.support.tiny_models import result_of

pytestmark = pytest.mark.oldest_host

# Patches that write into tensors


def scaled_by_its_mean(h, options):
    """Writes into what it has multiplied, as FreeU_V2 does."""
    half = h.shape[1] // 2
    h[:, :half] = h[:, :half] * (1 + h.mean(1, keepdim=True).tanh())
    return h


def second_half_overwritten(h, options):
    """Keeps a view that begins in the middle of what it overwrites."""
    half = h.shape[1] // 2
    product = h[:, half:] * h[:, :half]
    h.mul_(0.5)
    h[:, half:] += product
    return h


def overwritten_twice(h, options):
    first = h * h.sigmoid()
    h.add_(1)
    second = h * h.sigmoid()
    h.copy_(first + second)
    return h.mul_(0.5)


def without_a_write(h, options):
    return h * h.sigmoid()


@pytest.mark.parametrize(
    ("patch", "checkpointing"),
    [
        (scaled_by_its_mean, False),
        (scaled_by_its_mean, True),
        (second_half_overwritten, False),
        (overwritten_twice, False),
        (without_a_write, False),
    ],
)
@pytest.mark.parametrize("place", ["input_block_patch", "input_block_patch_after_skip"])
def test_a_patch_may_overwrite_what_its_gradient_needs(place, patch, checkpointing):
    """A ControlNet is added to what they return, in place; after the skip they write into the skip, too."""
    model = build()
    inputs = pass_inputs(model, control=True)
    inputs["transformer_options"]["patches"] = {place: [patch, without_a_write]}

    out, gradient = with_gradient(model, inputs, [2, 3], checkpointing=checkpointing)

    assert_is_the_gradient(model, inputs, [2, 3], gradient, directions=1)
    torch.testing.assert_close(out, plain(model, inputs), rtol=1e-6, atol=1e-6)


def test_a_patch_may_overwrite_what_the_model_keeps():
    """The normalised tokens in front of the attention: queries, keys and values are made of them."""
    model = build()
    inputs = pass_inputs(model)
    inputs["transformer_options"]["patches"] = {
        "attn1_patch": [lambda n, context, value, options: (n.mul_(1.3), context, value)],
        "attn2_output_patch": [lambda n, options: n.mul_(n.sigmoid())],
    }

    _, gradient = with_gradient(model, inputs, [2, 3])

    assert_is_the_gradient(model, inputs, [2, 3], gradient, directions=2)


def test_what_is_overwritten_after_the_patch_has_run_is_no_wrong_gradient():
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.randn(3).requires_grad_()
        h = run_foreign(lambda x: x.sigmoid(), x)
        h.detach().mul_(2)
        with pytest.raises(RuntimeError, match="overwritten afterwards"):
            torch.autograd.grad(h.sum(), x)


def test_nothing_is_copied_that_is_not_overwritten():
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.randn(3).requires_grad_()
        kept = []

        def patch(x):
            kept.append(x.sin())
            return kept[0] * kept[0]

        product = run_foreign(patch, x)
        assert product.grad_fn._saved_self.data_ptr() == kept[0].data_ptr()


def filter_in_float64(x, threshold, scale):
    """FreeU's Fourier filter, which rounds to float32: too coarse for differences."""
    spectrum = torch.fft.fftshift(torch.fft.fftn(x, dim=(-2, -1)))
    h, w = x.shape[-2] // 2, x.shape[-1] // 2
    mask = torch.ones_like(x)
    mask[..., h - threshold : h + threshold, w - threshold : w + threshold] = scale
    return torch.fft.ifftn(torch.fft.ifftshift(spectrum * mask), dim=(-2, -1)).real


@pytest.mark.parametrize("node", [freelunch.FreeU, freelunch.FreeU_V2])
def test_the_gradient_through_freeu_is_exact(node, monkeypatch):
    monkeypatch.setattr(freelunch, "Fourier_filter", filter_in_float64)
    model = build()
    inputs = pass_inputs(model)
    freeu = result_of(node.execute(tiny.patcher(), 1.3, 1.4, 0.9, 0.2))
    inputs["transformer_options"]["patches"] = freeu.model_options["transformer_options"]["patches"]

    _, gradient = with_gradient(model, inputs, [2, 3])

    assert_is_the_gradient(model, inputs, [2, 3], gradient, directions=2)


@pytest.mark.parametrize("freeu_first", [True, False])
@pytest.mark.parametrize("node", [freelunch.FreeU, freelunch.FreeU_V2])
def test_depth_aware_guidance_beside_freeu_in_either_order(node, freeu_first):
    def freeu(model):
        return result_of(node.execute(model, 1.3, 1.4, 0.9, 0.2))

    model = tiny.patcher()
    both = tiny.sample(depth.depth_guided(freeu(model)) if freeu_first else freeu(depth.depth_guided(model)))
    only_freeu = tiny.sample(freeu(tiny.patcher()))

    assert both.isfinite().all()
    assert 0 < (both - only_freeu).norm() < (only_freeu - tiny.sample(tiny.patcher())).norm()
