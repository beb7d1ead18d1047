"""Self-Attention Guidance beside other nodes: each keeps the effect that it has alone."""

import comfy.samplers
import comfy_extras.nodes_apg as apg
import comfy_extras.nodes_freelunch as freeu
import comfy_extras.nodes_hypertile as hypertile
import comfy_extras.nodes_mahiro as mahiro
import comfy_extras.nodes_model_downscale as downscale
import comfy_extras.nodes_pag as pag
import comfy_extras.nodes_perpneg as perpneg
import comfy_extras.nodes_sag as host_sag
import comfy_extras.nodes_tcfg as tcfg
import comfy_extras.nodes_tomesd as tome
import pytest
import tiny_models as tiny
import torch
from comfy.ldm.modules.attention import optimized_attention

from inner_guidance.guidance.host.extra_pass import TAG


def result_of(node_output):
    """The model that a node of the host returns, V1 or V3."""
    return node_output[0] if isinstance(node_output, tuple) else node_output.result[0]


def first_denoised(model, **kwargs):
    """The denoised result of the first step."""
    denoised = []
    tiny.sample(
        model, steps=kwargs.pop("steps", 1), callback=lambda i, x0, *_: denoised.append(x0.double()), **kwargs
    )
    return denoised[0]


def guidance_of(seen):
    """What guidance the first extra pass means: scale (x0_bar - D(x_bar)), for a negative alone."""
    sampler, extra = seen.passes[0], seen.extra[0]
    x, x0 = sampler.x[:1].double(), sampler.out[:1].double()
    return 0.75 * (extra.x.double() - x + x0 - extra.out.double())


def assert_close_but_for_batch_size(a, b):
    """Equal within what float32 convolutions differ by when the batch is cut differently."""
    torch.testing.assert_close(a, b, rtol=0, atol=2e-4 * float(b.abs().max()))


# Nodes that change the forward pass


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


@pytest.mark.parametrize("sag_first", [True, False], ids=["sag-first", "sag-last"])
@pytest.mark.parametrize("blocks", ["m0", "u3"])
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
    assert seen.labels == [[1, 0], [1]]
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

    model.set_model_attn2_replace(replaced, "middle", 0)
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

    assert_close_but_for_batch_size(
        first_denoised(tiny.guided(model)), first_denoised(tiny.guided(tiny.patcher()))
    )


# Nodes that guide


def with_pag(model):
    return result_of(pag.PerturbedAttentionGuidance.execute(model, 3.0))


def with_perp_neg_node(model):
    return result_of(perpneg.PerpNeg.execute(model, tiny.prompt(9), 1.0))


ADDED = {"PAG": with_pag, "PerpNeg node": with_perp_neg_node}


@pytest.mark.parametrize("sag_first", [True, False], ids=["sag-first", "sag-last"])
@pytest.mark.parametrize("other", ADDED)
def test_guidances_add_up(other, sag_first):
    attach = ADDED[other]
    plain, other_alone, sag_alone = (
        first_denoised(model)
        for model in (tiny.patcher(), attach(tiny.patcher()), tiny.guided(tiny.patcher()))
    )

    model = tiny.patcher()
    both = first_denoised(attach(tiny.guided(model)) if sag_first else tiny.guided(attach(model)))

    assert (other_alone - plain).abs().max() > 1
    torch.testing.assert_close(both - other_alone, sag_alone - plain, rtol=1e-4, atol=5e-3)


def test_beside_the_hosts_own_sag():
    """Its replacement, in the block that we read, makes no call of the host's attention."""
    model = tiny.patcher()
    seen = tiny.watch(model)
    hosts = result_of(host_sag.SelfAttentionGuidance.execute(model, 0.4, 1.3))

    assert first_denoised(tiny.guided(hosts)).isfinite().all()
    assert seen.labels == [[1, 0], [1], [0]]


@pytest.mark.parametrize("mask", ["attention", "global"])
def test_three_conditions_of_the_perp_neg_guider(mask):
    def run(model):
        guider = perpneg.Guider_PerpNeg(model)
        guider.set_conds(tiny.prompt(0), tiny.prompt(1), tiny.prompt(9))
        guider.set_cfg(4.0, 1.0)
        return tiny.sample_with(guider, steps=1).double()

    model = tiny.patcher()
    seen = tiny.watch(model)
    guided = run(tiny.guided(model, mask=mask))

    assert seen.labels == [[2, 1, 0], [1]]
    sampler, extra = seen.passes
    x, x0 = sampler.x[:1].double(), sampler.out[1:2].double()
    guidance = 0.75 * (extra.x.double() - x + x0 - extra.out.double())
    torch.testing.assert_close(guided - run(tiny.patcher()), guidance / 0.18215, rtol=1e-3, atol=2e-2)


def test_dual_cfg_guider_with_its_own_order_of_lists():
    custom = pytest.importorskip("comfy_extras.nodes_custom_sampler")

    def run(model):
        guider = custom.Guider_DualCFG(model)
        guider.set_conds(tiny.prompt(0), tiny.prompt(9), tiny.prompt(1))
        guider.set_cfg(2.0, 4.0)
        return tiny.sample_with(guider, steps=1).double()

    model = tiny.patcher()
    seen = tiny.watch(model)
    guided = run(tiny.guided(model))

    sampler, extra = seen.passes
    row = sampler.transformer_options["cond_or_uncond"].index(0)  # this guider's first list is the negative
    assert extra.transformer_options["cond_or_uncond"] == [0]
    x, x0 = sampler.x[:1].double(), sampler.out[row : row + 1].double()
    guidance = 0.75 * (extra.x.double() - x + x0 - extra.out.double())
    torch.testing.assert_close(guided - run(tiny.patcher()), guidance / 0.18215, rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("mask", ["attention", "global"])
def test_dual_model_guider_asks_the_model_of_the_branch(mask):
    """The negative has a model of its own: its attention, its second pass."""
    custom = pytest.importorskip("comfy_extras.nodes_custom_sampler")
    if not hasattr(custom, "Guider_DualModel"):
        pytest.skip("this host has no DualModelGuider")

    def run(model):
        guider = custom.Guider_DualModel(model, tiny.patcher(seed=1))
        guider.set_conds(tiny.prompt(0), tiny.prompt(1))
        guider.set_cfg(4.0)
        return tiny.sample_with(guider, steps=1).double()

    model = tiny.patcher()
    seen = tiny.watch(model)
    guided = run(tiny.guided(model, mask=mask))

    _, negative, extra = seen.passes
    alone = tiny.patcher(seed=1)
    seen_alone = tiny.watch(alone)
    tiny.sample_with(tiny.BasicGuider(tiny.guided(alone, mask=mask), tiny.prompt(1)), steps=1)
    assert torch.equal(extra.x, seen_alone.extra[0].x)
    assert torch.equal(extra.out, seen_alone.extra[0].out)
    x, x0 = negative.x.double(), negative.out.double()
    guidance = 0.75 * (extra.x.double() - x + x0 - extra.out.double())
    torch.testing.assert_close(guided - run(tiny.patcher()), guidance / 0.18215, rtol=1e-3, atol=2e-2)


def test_first_evaluation_of_a_step_counts():
    """A node evaluates the conditions twice and takes the first: that is the attention to read."""

    def twice(args):
        rest = (args["conds"], args["input"], args["sigma"], args["model_options"])
        first = comfy.samplers.calc_cond_batch(args["model"], *rest)
        comfy.samplers.calc_cond_batch(args["model"], rest[0], rest[1].flip(-1), *rest[2:])
        return first

    model = tiny.patcher()
    model.set_model_sampler_calc_cond_batch_function(twice)

    assert torch.equal(first_denoised(tiny.guided(model)), first_denoised(tiny.guided(tiny.patcher())))


def thresholding(args):
    """As dynamic thresholding does it: a CFG function that clamps by what the positive branch spans."""
    cond, uncond = args["cond_denoised"], args["uncond_denoised"]
    guided = uncond + args["cond_scale"] * (cond - uncond)
    limit = cond.abs().amax(dim=(1, 2, 3), keepdim=True)
    return args["input"] - guided.clamp(-limit, limit)


def test_cfg_function_that_thresholds_sees_the_guided_predictions():
    model = tiny.patcher()
    seen = tiny.watch(model)
    model.set_model_sampler_cfg_function(thresholding)

    denoised = first_denoised(tiny.guided(model))

    uncond, cond = (d + guidance_of(seen) for d in seen.passes[0].out.double().chunk(2))
    limit = cond.abs().max()
    assert ((uncond + 4 * (cond - uncond)).abs() > limit).any()
    torch.testing.assert_close(
        denoised, (uncond + 4 * (cond - uncond)).clamp(-limit, limit), rtol=1e-4, atol=1e-3
    )


def test_rescale_cfg_of_0_is_plain_cfg():
    model_advanced = pytest.importorskip("comfy_extras.nodes_model_advanced")
    model = tiny.patcher()
    rescaled = result_of(model_advanced.RescaleCFG().patch(model, 0.0))

    torch.testing.assert_close(
        first_denoised(tiny.guided(rescaled)),
        first_denoised(tiny.guided(tiny.patcher())),
        rtol=1e-3,
        atol=1e-2,
    )


CHANGED_CFG = {
    "TCFG": lambda model: result_of(tcfg.TCFG.execute(model)),
    "APG": lambda model: result_of(apg.APG.execute(model, 1.0, 5.0, 0.0)),
    "Mahiro": lambda model: result_of(mahiro.Mahiro.execute(model)),
}


@pytest.mark.parametrize("other", CHANGED_CFG)
def test_nodes_that_change_cfg(other):
    """They see the predictions that they see alone, and the guidance is added to what they make of them."""
    attach = CHANGED_CFG[other]
    alone = first_denoised(attach(tiny.patcher()))
    model = tiny.patcher()
    seen = tiny.watch(model)

    both = first_denoised(tiny.guided(attach(model)))

    assert both.isfinite().all()
    if other != "Mahiro":  # which is a post-CFG function of the result
        torch.testing.assert_close(both - alone, guidance_of(seen), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("sag_first", [True, False], ids=["sag-first", "sag-last"])
def test_post_cfg_functions_see_the_guided_result(sag_first):
    """And the predictions as the model made them, wherever the nodes stand in the graph."""
    seen_args = []
    other = tiny.patcher()
    seen = tiny.watch(other)

    def attach(model):
        model = model.clone()
        model.set_model_sampler_post_cfg_function(lambda args: seen_args.append(args) or args["denoised"])
        return model

    denoised = first_denoised(attach(tiny.guided(other)) if sag_first else tiny.guided(attach(other)))

    uncond, cond = seen.passes[0].out.chunk(2)
    assert torch.equal(seen_args[0]["denoised"].double(), denoised)
    assert torch.equal(seen_args[0]["uncond_denoised"], uncond)
    assert torch.equal(seen_args[0]["cond_denoised"], cond)


def test_cfg_pp_samplers_renoise_with_the_negative_alone():
    """euler_cfg_pp: the next latent is the denoised result plus noise from the unguided negative."""

    def second_latent(model):
        seen = tiny.watch(model)
        return seen, lambda: [p.x[:1].double() for p in seen.passes if TAG not in p.transformer_options][1]

    plain = tiny.patcher()
    _, plain_latent = second_latent(plain)
    first_denoised(plain, steps=2, sampler="euler_cfg_pp")
    model = tiny.patcher()
    seen, latent = second_latent(model)
    first_denoised(tiny.guided(model), steps=2, sampler="euler_cfg_pp")

    torch.testing.assert_close(latent() - plain_latent(), guidance_of(seen), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "sampler", ["heun", "dpm_2", "dpmpp_2s_ancestral", "dpmpp_3m_sde", "uni_pc", "ddim", "lcm"]
)
def test_samplers(sampler):
    assert tiny.sample(tiny.guided(tiny.patcher()), sampler=sampler).isfinite().all()


def test_the_models_options_are_left_alone():
    """Our options are copies: those of the model are as they were."""
    model = with_pag(tiny.patcher())
    functions = list(model.model_options["sampler_post_cfg_function"])

    first_denoised(tiny.guided(model))

    assert model.model_options["sampler_post_cfg_function"] == functions
    assert "sampler_pre_cfg_function" not in model.model_options
    assert "optimized_attention_override" not in model.model_options["transformer_options"]


def test_controlnet_in_both_passes():
    """It runs again for our pass, on the degraded latent; nothing of the sampler's pass is used up."""
    controlnet = pytest.importorskip("comfy.controlnet")
    inputs = []

    class Residuals(controlnet.ControlBase):
        """A ControlNet that adds the same to every skip connection of tiny_models' UNet."""

        def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
            inputs.append(x_noisy.clone())
            grids, channels = [16, 16, 8, 8], [32, 32, 32, 64]
            rows = x_noisy.shape[0]
            return {
                "input": [],
                "middle": [torch.full((rows, 64, 8, 8), 0.5)],
                "output": [torch.full((rows, c, g, g), 0.5) for c, g in zip(channels, grids, strict=True)],
            }

        def get_models(self):
            return []

    def prompts(control):
        values = {"control": control, "control_apply_to_uncond": False} if control else {}
        return {"positive": tiny.prompt(0, **values), "negative": tiny.prompt(1, **values)}

    model, plain = tiny.patcher(), tiny.patcher()
    seen, seen_plain = tiny.watch(model), tiny.watch(plain)
    first_denoised(plain, **prompts(Residuals()))
    inputs.clear()

    first_denoised(tiny.guided(model), **prompts(Residuals()))

    assert torch.equal(seen.passes[0].out, seen_plain.passes[0].out)
    assert [len(x) for x in inputs] == [2, 1]
    assert torch.equal(inputs[1], seen.extra[0].x)
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
    assert calls == [False] * once + [True] * (once // 2)  # both branches, then ours
