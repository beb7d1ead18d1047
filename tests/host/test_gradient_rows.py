"""Depth-Aware Guidance beside code of other nodes for which the rows of a pass belong together."""

import types

import comfy_extras.nodes_freelunch as freelunch
import comfy_extras.nodes_hypertile as hypertile
import comfy_extras.nodes_model_downscale as downscale
import comfy_extras.nodes_tomesd as tomesd
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from inner_guidance.guidance import depth_aware as dag
from inner_guidance.host.gradients.rows import rows_are_independent
from inner_guidance.host.keys import WRAPPER_KEY
from inner_guidance.host.steering import gradient_pass
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.gradient_reference import (
    assert_is_the_gradient,
    build,
    pass_inputs,
    with_gradient,
)
from inner_guidance.tests.support.naive_depth import gradient_of, naive_depth
from inner_guidance.tests.support.tiny_models import result_of

pytestmark = pytest.mark.oldest_host

NAG_SCALE, NAG_ALPHA, NAG_TAU = 5.0, 0.5, 1.5


def with_nag(model):
    nag = pytest.importorskip("comfy_extras.nodes_nag")  # not in 0.9.2
    return result_of(nag.NAGuidance.execute(model, NAG_SCALE, NAG_ALPHA, NAG_TAU))


def with_hypertile(model):
    return result_of(hypertile.HyperTile.execute(model, 32, 4, 0, False))


def with_tome(model):
    return result_of(tomesd.TomePatchModel.execute(model, 0.5))


def with_rows_of_its_own(model):
    """As BrushNet: a tensor for all rows that the sampler evaluates."""
    added = tiny.noise(2, 32, 16, 16, seed=8)
    model = model.clone()
    model.set_model_input_block_patch(lambda h, options: h + added if options["block"][1] == 0 else h)
    return model


def with_random_numbers(model):
    model = model.clone()
    model.set_model_output_block_patch(lambda h, hsp, options: (h + 0.3 * torch.randn_like(h), hsp))
    return model


OF_THE_WHOLE_PASS = [with_nag, with_hypertile, with_tome, with_rows_of_its_own, with_random_numbers]


def predictions(model, **kwargs):
    """Of the first step: what the model predicts for each prompt, and what the sampler is given."""
    seen = []
    model = model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: seen.append(args) or args["denoised"])
    torch.manual_seed(11)
    tiny.sample(model, steps=1, **kwargs)
    return [seen[0][name].clone() for name in ("cond_denoised", "uncond_denoised", "denoised")]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("other", OF_THE_WHOLE_PASS)
def test_a_guided_step_predicts_what_an_unguided_one_does(other, checkpointing):
    plain = predictions(other(tiny.patcher()))
    guided = predictions(depth.depth_guided(other(tiny.patcher()), checkpointing=checkpointing))

    assert (plain[0] - predictions(tiny.patcher())[0]).norm() > 1e-2 * plain[0].norm()
    for a, b in zip(guided[:2], plain[:2], strict=True):
        assert (a - b).abs().max() < 1e-4 * b.abs().max()
    assert (guided[2] - plain[2]).norm() > 1e-3 * plain[2].norm()


# The gradient, where the positive's features depend on the negative's rows


def naive_nag(n, options):
    """nodes_nag, out of place."""
    parts = dict(zip(options["cond_or_uncond"], n.chunk(2), strict=True))
    positive, negative = parts[0], parts[1]
    guided = NAG_SCALE * positive - (NAG_SCALE - 1) * negative
    ratio = guided.abs().sum(-1, keepdim=True) / positive.abs().sum(-1, keepdim=True)
    guided = guided * ratio.clamp(max=NAG_TAU) / ratio
    mixed = NAG_ALPHA * guided + (1 - NAG_ALPHA) * positive
    return torch.cat([mixed if label == 0 else negative for label in options["cond_or_uncond"]])


def test_the_shift_beside_nag_is_that_of_plain_autograd_through_the_whole_batch():
    network = depth.head().head.network
    model = tiny.patcher()
    seen = []
    guided = depth.depth_guided(with_nag(model))
    guided.set_model_sampler_post_cfg_function(lambda args: seen.append(args) or args["denoised"])
    tiny.sample(guided, steps=1, cfg=4.0)
    (args,) = seen
    found = args["denoised"] - (
        args["uncond_denoised"] + 4.0 * (args["cond_denoised"] - args["uncond_denoised"])
    )
    sigma = float(args["sigma"])

    def shift(patches):
        leaf, (strong, weak) = naive_depth(
            model, network, args["input"], args["sigma"], tiny.prompt(0), tiny.prompt(1), patches
        )
        with torch.inference_mode(False), torch.enable_grad():
            loss = ((strong.detach() - weak) ** 2).mean()
        g = gradient_of(loss, leaf)
        share = sigma / (sigma**2 + 1) ** 0.5
        deviation = args["cond_denoised"].double().std()
        return -dag.ROBUST_STEP * share * deviation * g / g.square().mean().sqrt()

    expected = shift({"attn1_output_patch": [naive_nag]})
    assert (found - expected).norm() < 1e-3 * expected.norm()
    assert (shift({}) - expected).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_through_nag_is_exact(checkpointing):
    model = build()
    inputs = pass_inputs(model)
    patches = with_nag(tiny.patcher()).model_options["transformer_options"]["patches"]
    inputs["transformer_options"]["patches"] = patches

    _, gradient = with_gradient(model, inputs, [2, 3], apart=False, checkpointing=checkpointing)

    assert_is_the_gradient(model, inputs, [2, 3], gradient, directions=2, together=True)


# Where the rows are evaluated apart all the same


def with_freeu(model):
    return result_of(freelunch.FreeU.execute(model, 1.3, 1.4, 0.9, 0.2))


def with_freeu_v2(model):
    return result_of(freelunch.FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2))


def with_downscale(model, after_skip=True):
    return result_of(
        downscale.PatchModelAddDownscale.execute(model, 1, 2.0, 0.0, 1.0, after_skip, "bicubic", "bicubic")
    )


ROW_BY_ROW = [with_freeu, with_freeu_v2, with_downscale]


def transformer_options(model):
    return model.model_options["transformer_options"]


@pytest.mark.parametrize("other", ROW_BY_ROW)
def test_patches_that_work_row_by_row_give_the_same_in_two_passes(other):
    model = build()
    inputs = pass_inputs(model)
    plain = with_gradient(model, inputs, [2, 3])
    patches = transformer_options(other(tiny.patcher()))["patches"]
    inputs["transformer_options"] |= {"patches": patches, "sigmas": torch.ones(1)}

    apart, together = (with_gradient(model, inputs, [2, 3], apart=apart) for apart in (True, False))

    for a, b in zip(apart, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))
    assert (apart[0] - plain[0]).norm() > 1e-2 * plain[0].norm()
    assert rows_are_independent(model, transformer_options(other(tiny.patcher())))


@pytest.mark.parametrize(
    "folder", ["/opt/ComfyUI/comfy_extras/", "C:\\ComfyUI\\comfy_extras\\", "comfy_extras."]
)
def test_nodes_of_the_host_are_known_by_the_name_that_the_host_gives_their_module(folder):
    def patch(h, hsp, options):
        return h, hsp

    independent = []
    for name in ("nodes_freelunch", "nodes_freelunch_of_mine", "nodes_nag"):
        patch.__module__ = folder + name
        independent.append(rows_are_independent(tiny.patcher().model, {"patches": {"any": [patch]}}))

    assert independent == [True, False, False]


def any_function(*args, **kwargs):
    """Of another node."""


def forward_replaced(model):
    model.diffusion_model.middle_block.forward = any_function


def forward_hook(model):
    model.diffusion_model.middle_block.register_forward_hook(any_function)


def forward_pre_hook(model):
    model.diffusion_model.out.register_forward_pre_hook(any_function)


def the_modules_own_forward(model):
    """As the host leaves it behind when it takes a LoRA in bypass mode away."""
    block = model.diffusion_model.middle_block
    block.forward = types.MethodType(type(block).forward, block)


@pytest.mark.parametrize(
    ("options", "change", "independent"),
    [
        ({}, None, True),
        ({"patches": {}, "patches_replace": {"attn1": {}}, "wrappers": {}}, None, True),
        ({"patches": {"attn1_patch": [any_function]}}, None, False),
        ({"patches": {"forward_timestep_embed_patch": [(object, any_function)]}}, None, False),
        ({"patches_replace": {"attn2": {("middle", 0): any_function}}}, None, False),
        ({"optimized_attention_override": any_function}, None, False),
        ({"wrappers": {WrappersMP.DIFFUSION_MODEL: {"other": [any_function]}}}, None, False),
        ({"wrappers": {WrappersMP.APPLY_MODEL: {None: [any_function]}}}, None, False),
        ({"wrappers": {WrappersMP.APPLY_MODEL: {WRAPPER_KEY: [any_function]}}}, None, True),
        ({"wrappers": {WrappersMP.APPLY_MODEL: {"torch.compile": [any_function]}}}, None, True),
        ({"wrappers": {WrappersMP.OUTER_SAMPLE: {"other": [any_function]}}}, None, True),
        ({}, forward_replaced, False),
        ({}, forward_hook, False),
        ({}, forward_pre_hook, False),
        ({}, the_modules_own_forward, True),
    ],
)
def test_what_keeps_the_rows_of_a_pass_together(options, change, independent):
    model = build()
    if change:
        change(model)

    assert rows_are_independent(model, options) is independent


@pytest.mark.parametrize(("other", "passes"), [(None, 2), (with_freeu, 2), (with_nag, 1)])
def test_the_model_is_evaluated_once_or_for_each_prompt(other, passes, monkeypatch):
    counts = []
    call = gradient_pass.evaluate_with_gradient

    def count(executor, rows, layers, products, inputs, *, apart, **kwargs):
        counts.append(2 if apart else 1)
        return call(executor, rows, layers, products, inputs, apart=apart, **kwargs)

    monkeypatch.setattr(gradient_pass, "evaluate_with_gradient", count)
    model = tiny.patcher()
    tiny.sample(depth.depth_guided(other(model) if other else model), steps=1)

    assert counts == [passes]
