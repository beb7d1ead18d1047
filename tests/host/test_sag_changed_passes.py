"""Self-Attention Guidance beside nodes that change the forward pass: each keeps the effect it has alone."""

import comfy_extras.nodes_freelunch as freeu
import comfy_extras.nodes_hypertile as hypertile
import comfy_extras.nodes_model_downscale as downscale
import comfy_extras.nodes_tomesd as tome
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention

from inner_guidance.host.keys import TAG
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.sag_reference import guidance_of
from inner_guidance.tests.support.tiny_models import first_denoised, result_of

pytestmark = pytest.mark.oldest_host


def assert_close_but_for_batch_size(a, b):
    """Equal within what float32 convolutions differ by when the batch is cut differently."""
    torch.testing.assert_close(a, b, rtol=0, atol=2e-4 * float(b.abs().max()))


def attn2_replacement(model):
    """As IPAdapter does it: adds to the positive's cross-attention only, told by the label."""

    def replaced(q, k, v, extra_options):
        out = optimized_attention(q, k, v, extra_options["n_heads"])
        chunks = out.chunk(len(extra_options["cond_or_uncond"]))
        return torch.cat(
            [c + (label == 0) for c, label in zip(chunks, extra_options["cond_or_uncond"], strict=True)]
        )

    model = model.clone()
    model.set_model_attn2_replace(replaced, "middle", 0)
    return model


def attn1_replacement(model):
    """As SEG does it: the block's self-attention, on smoothed queries, with the host's attention."""

    def replaced(q, k, v, extra_options):
        q = q.lerp(q.mean(dim=1, keepdim=True), 0.5)
        return optimized_attention(q, k, v, extra_options["n_heads"], transformer_options=extra_options)

    model = model.clone()
    model.set_model_attn1_replace(replaced, "middle", 0)
    return model


def attention_override(model):
    """As the nodes that choose another attention kernel do it."""

    def override(attention, q, k, v, *args, **kwargs):
        return attention(q, k, v, *args, **kwargs) * 1.01

    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return model


def function_wrapper(model):
    """A model_function_wrapper, which strengthens the prompt."""

    def wrapper(apply_model, args):
        c = args["c"] | {"c_crossattn": args["c"]["c_crossattn"] * 1.5}
        return apply_model(args["input"], args["timestep"], **c)

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


def nag(model):
    """Normalized Attention Guidance: changes the positive of a pass that has both branches."""
    node = pytest.importorskip("comfy_extras.nodes_nag").NAGuidance
    return result_of(node.execute(model, 5.0, 0.5, 1.5))


CHANGED_PASSES = {
    "NAG": nag,
    "FreeU": lambda model: result_of(freeu.FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2)),
    "HyperTile": lambda model: result_of(hypertile.HyperTile.execute(model, 32, 2, 1, False)),
    "ToMe": lambda model: result_of(tome.TomePatchModel.execute(model, 0.5)),
    "Deep Shrink": lambda model: result_of(
        downscale.PatchModelAddDownscale.execute(model, 1, 1.5, 0.0, 1.0, True, "bicubic", "bicubic")
    ),
    "attn1 replacement": attn1_replacement,
    "attn2 replacement": attn2_replacement,
    "attention override": attention_override,
    "model function wrapper": function_wrapper,
}

ROW_BY_ROW = ("FreeU", "Deep Shrink")


@pytest.mark.parametrize(("blocks", "sag_first"), [("m0", True), ("u3", False)], ids=["m0-first", "u3-last"])
@pytest.mark.parametrize("other", CHANGED_PASSES)
def test_nodes_that_change_the_forward_pass(other, blocks, sag_first):
    """The sampler's pass is, bit for bit, what it is without guidance."""
    change = CHANGED_PASSES[other]
    torch.manual_seed(0)  # ToMe and HyperTile draw from the global generator
    alone = tiny.patcher()
    seen_alone = tiny.watch(alone)
    first_denoised(change(alone))
    plain = tiny.patcher()
    seen_plain = tiny.watch(plain)
    first_denoised(plain)

    torch.manual_seed(0)
    model = tiny.patcher()
    seen = tiny.watch(model)
    both = (
        change(tiny.guided(model, blocks=blocks)) if sag_first else tiny.guided(change(model), blocks=blocks)
    )
    denoised = first_denoised(both)

    assert torch.equal(seen.passes[0].out, seen_alone.passes[0].out)
    assert not torch.equal(seen.passes[0].out, seen_plain.passes[0].out)
    assert seen.labels == [[1, 0], [1] if other in ROW_BY_ROW else [1, 0]]
    uncond, cond = seen.passes[0].out.double().chunk(2)
    torch.testing.assert_close(
        denoised, uncond + 4 * (cond - uncond) + guidance_of(seen), rtol=1e-4, atol=1e-3
    )


def test_label_of_our_pass_keeps_ipadapter_out_of_the_negative():
    labels = []
    model = tiny.patcher()

    def replaced(q, k, v, extra_options):
        labels.append((TAG in extra_options, extra_options["cond_or_uncond"]))
        return optimized_attention(q, k, v, extra_options["n_heads"])

    model.set_model_attn2_replace(tiny.looks_on(replaced), "middle", 0)
    first_denoised(tiny.guided(model))

    assert labels == [(False, [1, 0]), (True, [1])]


@pytest.mark.parametrize("parts", [2, 4])
def test_function_wrapper_that_splits_the_batch(parts):
    """The maps are put together from the parts."""

    def splitting(apply_model, args):
        size = max(1, args["input"].shape[0] // parts)
        x, t, c = args["input"].split(size), args["timestep"].split(size), dict(args["c"])
        context = c.pop("c_crossattn").split(size)
        return torch.cat(
            [apply_model(*part, c_crossattn=y, **c) for *part, y in zip(x, t, context, strict=True)]
        )

    latent = torch.zeros(2, 4, 16, 16)
    whole = first_denoised(tiny.guided(tiny.patcher()), latent=latent)
    model = tiny.patcher()
    model.set_model_unet_function_wrapper(splitting)

    assert_close_but_for_batch_size(first_denoised(tiny.guided(model), latent=latent), whole)
    tiny.assert_steered(whole, first_denoised(tiny.patcher(), latent=latent))


def test_function_wrapper_that_tells_only_the_labels():
    """A wrapper that evaluates the branches one by one, and changes cond_or_uncond alone."""

    def one_by_one(apply_model, args):
        out = []
        c = args["c"]
        for i, label in enumerate(args["cond_or_uncond"]):
            options = c["transformer_options"] | {"cond_or_uncond": [label]}
            part = c | {"transformer_options": options, "c_crossattn": c["c_crossattn"][i : i + 1]}
            out.append(apply_model(args["input"][i : i + 1], args["timestep"][i : i + 1], **part))
        return torch.cat(out)

    model = tiny.patcher()
    model.set_model_unet_function_wrapper(one_by_one)

    whole = first_denoised(tiny.guided(tiny.patcher()))
    assert_close_but_for_batch_size(first_denoised(tiny.guided(model)), whole)
    tiny.assert_steered(whole, first_denoised(tiny.patcher()))


def test_controlnet_in_both_passes():
    """It runs again for our pass, on the degraded latent; nothing of the sampler's pass is used up."""
    from inner_guidance.tests.support.residual_control import (
        Residuals,  # skips where the host has no comfy.controlnet
    )

    def prompts(control):
        values = {"control": control, "control_apply_to_uncond": False} if control else {}
        return {"positive": tiny.prompt(0, **values), "negative": tiny.prompt(1, **values)}

    model, plain = tiny.patcher(), tiny.patcher()
    seen, seen_plain = tiny.watch(model), tiny.watch(plain)
    first_denoised(plain, **prompts(Residuals()))

    control = Residuals()
    first_denoised(tiny.guided(model), **prompts(control))

    assert torch.equal(seen.passes[0].out, seen_plain.passes[0].out)
    assert [len(x) for x in control.seen] == [2, 1]
    assert torch.equal(control.seen[1], seen.extra[0].x)
    uncontrolled = tiny.patcher()
    seen_uncontrolled = tiny.watch(uncontrolled)
    first_denoised(tiny.guided(uncontrolled), **prompts(None))
    assert not torch.allclose(seen.extra[0].out, seen_uncontrolled.extra[0].out, atol=1.0)


def test_hook_with_an_attention_override_of_its_own():
    """An override that a conditioning's hook brings is chained like one of the model's."""
    hooks = pytest.importorskip("comfy.hooks")
    calls = []

    def override(attention, *args, **kwargs):
        calls.append(TAG in kwargs["transformer_options"])
        return attention(*args, **kwargs) * 1.01

    def negative():
        group = hooks.HookGroup()
        group.add(hooks.TransformerOptionsHook({"optimized_attention_override": override}))
        return tiny.prompt(1, hooks=group)

    model, plain = tiny.patcher(), tiny.patcher()
    seen, seen_plain = tiny.watch(model), tiny.watch(plain)
    first_denoised(plain, negative=negative())
    once = len(calls)
    calls.clear()

    first_denoised(tiny.guided(model), negative=negative())

    by_label = {p.transformer_options["cond_or_uncond"][0]: p.out for p in seen_plain.passes}
    for forward in seen.passes[:2]:
        assert torch.equal(forward.out, by_label[forward.transformer_options["cond_or_uncond"][0]])
    assert once > 0
    assert calls == [False] * once + [True] * once
