"""Depth-Aware Guidance in the host's sampling runs: samplers, schedules, prompts, neighbours, cost."""

import gc
import logging
import weakref

import comfy.samplers
import depth_models as depth
import pytest
import tiny_models as tiny
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP

from inner_guidance.guidance.host import depth_aware_guidance, depth_aware_step
from inner_guidance.guidance.host.extra_pass import TAG
from inner_guidance.guidance.host.records import Execution
from inner_guidance.nodes import depth_aware_guidance as depth_aware_node
from inner_guidance.nodes.depth_aware_guidance import InnerDepthAwareGuidance

# Its steps are as small as the model is rough, and models of random weights are: it takes hundreds. On the
# demo model it runs, in test_demo_depth_guidance.py.
SAMPLERS = [name for name in comfy.samplers.KSampler.SAMPLERS if name != "dpm_adaptive"]


@pytest.fixture
def gradients(monkeypatch):
    """The labels of the chunk and the sigma of every gradient that is taken."""
    taken = []
    evaluate = depth_aware_step.evaluate_with_gradient

    def count(executor, rows, layers, products, inputs, **kwargs):
        labels = inputs["transformer_options"]["cond_or_uncond"]
        batch = len(inputs["x"]) // len(labels)
        taken.append((labels[rows[0] // batch], float(inputs["t"].max())))
        return evaluate(executor, rows, layers, products, inputs, **kwargs)

    monkeypatch.setattr(depth_aware_step, "evaluate_with_gradient", count)
    return taken


def sampled(guide=True, model=None, settings=None, **kwargs):
    model = model or tiny.patcher()
    return tiny.sample(depth.depth_guided(model, **settings or {}) if guide else model, **kwargs)


# What costs nothing


@pytest.mark.parametrize(
    "settings",
    [
        {"consistency_scale": 0.0},
        {"consistency_scale": 0.0, "prior_scale": 0.0, "depth_prior": depth.prior()},
        {"consistency_scale": 0.0, "target_scale": 0.0, "target_depth": depth.target()},
    ],
    ids=["nothing connected", "prior at 0", "target at 0"],
)
def test_without_a_strength_there_is_no_node(settings):
    model = tiny.patcher()

    assert depth.depth_guided(model, **settings).model_options == model.model_options


def test_outside_the_range_the_image_is_bit_identical(gradients):
    settings = {"start_percent": 0.0, "end_percent": 0.0}

    assert torch.equal(sampled(settings=settings), sampled(guide=False))
    assert gradients == []


ONLY_TARGET = {"consistency_scale": 0.0, "target_depth": depth.target()}
FIRST_TARGET_THEN_CONSISTENCY = {
    "target_depth": depth.target(),
    "target_end_percent": 0.4,
    "self_start_percent": 0.4,
}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"start_percent": 0.4}, [2, 3]),
        ({"end_percent": 0.4}, [0, 1]),
        ({"every_n_steps": 2}, [0, 2]),
        ({"every_n_steps": 3, "start_percent": 0.2}, [1]),
        ({"self_start_percent": 0.4}, [2, 3]),
        ({"self_start_percent": 0.4, "start_percent": 0.7}, [3]),
        ({"self_start_percent": 0.4, "target_depth": depth.target()}, [0, 1, 2, 3]),
        ({"self_start_percent": 0.4, "mode": "paper"}, [0, 1, 2, 3]),
        (ONLY_TARGET | {"target_end_percent": 0.4}, [0, 1]),
        (ONLY_TARGET | {"target_end_percent": 0.4, "end_percent": 0.2}, [0]),
        (ONLY_TARGET | {"target_end_percent": 0.4, "mode": "paper"}, [0, 1, 2, 3]),
        # Where other losses act than before, the last direction is not used again.
        (FIRST_TARGET_THEN_CONSISTENCY | {"every_n_steps": 4}, [0, 2]),
    ],
)
def test_gradients_are_taken_in_the_range_at_every_nth_step(gradients, settings, expected):
    model = tiny.patcher()
    sampled(model=model, settings=settings, steps=4)

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 4)
    assert gradients == [(0, pytest.approx(float(sigmas[i]))) for i in expected]


def test_only_the_branches_and_blocks_that_are_needed_are_read(monkeypatch):
    read = []
    network = depth.head().head.network
    branches = type(network).branches
    monkeypatch.setattr(
        type(network),
        "branches",
        lambda self, features, time, size, names: (
            read.append((sorted(features), tuple(names))) or branches(self, features, time, size, names)
        ),
    )

    sampled(settings={"consistency_scale": 0.0, "target_depth": depth.target()}, steps=1)
    sampled(steps=1)

    assert read == [(["o1", "o2"], ("strong",)), (["o1", "o2"], ("strong", "weak"))]


def test_consistency_alone_is_differentiated_up_to_the_last_weak_block(monkeypatch):
    """The strong depth is a constant there; with a target it is not."""
    differentiated = []
    evaluate = depth_aware_step.evaluate_with_gradient

    def look(executor, rows, layers, products, inputs, *, constant, **kwargs):
        differentiated.append({layer.number for layer in layers} - {layer.number for layer in constant})
        return evaluate(executor, rows, layers, products, inputs, constant=constant, **kwargs)

    monkeypatch.setattr(depth_aware_step, "evaluate_with_gradient", look)
    deeper = depth.head(weak="o1")

    only, both = (
        sampled(settings={"depth_head": deeper, "target_depth": target}, steps=1)
        for target in (None, depth.target())
    )

    assert differentiated == [{1}, {1, 2}]
    assert not torch.equal(only, both)


def test_in_between_the_last_direction_is_used_again():
    every = sampled(steps=6)
    reused = sampled(steps=6, settings={"every_n_steps": 2})
    plain = sampled(guide=False, steps=6)

    assert not torch.equal(every, reused)
    assert (every - reused).norm() < (every - plain).norm()


# Samplers and schedulers


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_gives_a_finite_image(sampler):
    latent = torch.zeros(1, 4, 8, 8)

    image = sampled(latent=latent, sampler=sampler)

    assert image.isfinite().all()
    assert not torch.equal(image, sampled(guide=False, latent=latent, sampler=sampler))


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "ddpm", "heun", "dpmpp_2m", "dpmpp_sde"])
def test_the_papers_rule_gives_a_finite_image(sampler):
    image = sampled(latent=torch.zeros(1, 4, 8, 8), sampler=sampler, settings={"mode": "paper"})

    assert image.isfinite().all()


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
def test_every_scheduler_gives_a_finite_image(scheduler):
    assert sampled(latent=torch.zeros(1, 4, 8, 8), scheduler=scheduler).isfinite().all()


@pytest.mark.parametrize("model_type", ["V_PREDICTION", "EDM", "FLOW", "V_PREDICTION_EDM"])
def test_every_parametrisation_gives_a_finite_image(model_type):
    assert sampled(model=tiny.patcher(model_type=model_type)).isfinite().all()


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "inpaint"])
def test_every_unet(kind):
    latent = torch.zeros(1, 4, 16, 24)
    values = {}
    if kind == "inpaint":
        values = {"concat_latent_image": torch.zeros(1, 4, 16, 24), "concat_mask": torch.ones(1, 1, 16, 24)}
    prompts = {"positive": tiny.prompt(0, **values), "negative": tiny.prompt(1, **values)}

    plain = sampled(guide=False, model=tiny.patcher(kind), latent=latent, **prompts)
    image = sampled(model=tiny.patcher(kind), latent=latent, settings={"kind": kind}, **prompts)

    assert image.isfinite().all()
    assert not torch.equal(image, plain)


@pytest.mark.parametrize("size", [(17, 24), (9, 33)])
def test_sizes_that_the_blocks_do_not_divide(size):
    assert sampled(latent=torch.zeros(1, 4, *size)).isfinite().all()


def test_image_to_image_and_a_hires_pass():
    small = sampled(steps=4)
    large = torch.nn.functional.interpolate(small, scale_factor=2)

    assert sampled(latent=large, denoise=0.5, steps=4).isfinite().all()


def test_in_inpainting_only_what_is_drawn_anew_is_guided():
    latent = tiny.noise(1, 4, 16, 16, seed=3)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1

    image = sampled(latent=latent, noise_mask=mask)
    plain = sampled(guide=False, latent=latent, noise_mask=mask)

    assert torch.equal(image[..., 8:], plain[..., 8:])
    assert not torch.equal(image[..., :8], plain[..., :8])


def test_an_image_is_guided_alike_alone_and_in_a_batch():
    noise = tiny.noise(3, 4, 16, 16)
    settings = {"depth_prior": depth.prior(), "target_depth": depth.target()}

    def run(rows):
        return comfy.sample.sample(
            depth.depth_guided(tiny.patcher(), **settings),
            noise[rows],
            2,
            4.0,
            "euler",
            "normal",
            tiny.prompt(0),
            tiny.prompt(1),
            torch.zeros_like(noise[rows]),
            disable_pbar=True,
            seed=0,
        )

    together, alone = run([0, 1, 2]), run([0])

    assert (together[:1] - alone).abs().max() < 1e-3 * alone.abs().max()


def test_guidance_without_a_negative(gradients):
    tiny.sample_with(tiny.BasicGuider(depth.depth_guided(tiny.patcher()), tiny.prompt(0)))
    assert [label for label, _ in gradients] == [0, 0, 0]

    gradients.clear()
    sampled(cfg=1.0)
    assert [label for label, _ in gradients] == [0, 0, 0]


# Whose depth it is


def region(seed):
    return tiny.prompt(seed, area=(16, 8, 0, 0), strength=1.0)


def test_with_regional_prompts_the_depth_is_that_of_a_full_frame_prompt(gradients):
    sampled(positive=region(0) + tiny.prompt(2), steps=1)
    sampled(positive=region(0) + region(2), steps=1)
    masked = tiny.prompt(0, mask=(torch.arange(16) < 8).float().expand(1, 16, 16), mask_strength=1.0)
    sampled(positive=masked, steps=1)
    sampled(positive=tiny.prompt(0, start_percent=0.5, end_percent=1.0) + tiny.prompt(2), steps=1)

    assert [label for label, _ in gradients] == [0, 1, 1, 0]


def test_where_no_prompt_covers_the_image_nothing_is_guided_and_the_log_says_so(gradients, caplog):
    prompts = {"positive": region(0), "negative": region(1)}
    with caplog.at_level(logging.WARNING):
        image = sampled(**prompts)

    assert torch.equal(image, sampled(guide=False, **prompts))
    assert gradients == []
    assert [r.message for r in caplog.records if "Depth-Aware" in r.message] == [
        f"Depth-Aware Guidance has no effect at sigma {14.615:.3f}: no prompt covers the whole image."
    ]


# Beside others


def test_with_self_attention_guidance_there_is_one_pass_more_and_one_backward(gradients):
    seen = {}

    def run(*guides):
        model = tiny.patcher()
        watched = tiny.watch(model)
        for guide in guides:
            model = guide(model)
        image = tiny.sample(model, steps=2)
        seen[guides] = [
            (tuple(p.transformer_options["cond_or_uncond"]), TAG in p.transformer_options)
            for p in watched.passes
        ]
        return image

    both = run(tiny.guided, depth.depth_guided)
    assert len(gradients) == 2
    # The halves of the main pass, then the extra pass of the negative.
    assert seen[tiny.guided, depth.depth_guided] == [((1,), False), ((0,), False), ((1,), True)] * 2
    other_order = run(depth.depth_guided, tiny.guided)
    alone = [run(), run(tiny.guided), run(depth.depth_guided)]

    torch.testing.assert_close(both, other_order, rtol=1e-3, atol=1e-3)
    assert all(not torch.allclose(both, image, rtol=1e-2, atol=1e-2) for image in alone)


def test_beside_a_controlnet():
    controlnet = pytest.importorskip("comfy.controlnet")

    class Residuals(controlnet.ControlBase):
        """A ControlNet that adds the same to every skip connection of tiny_models' UNet."""

        def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
            grids, channels, rows = [16, 16, 8, 8], [32, 32, 32, 64], x_noisy.shape[0]
            return {
                "input": [],
                "middle": [torch.full((rows, 64, 8, 8), 0.5)],
                "output": [torch.full((rows, c, g, g), 0.5) for c, g in zip(channels, grids, strict=True)],
            }

        def get_models(self):
            return []

    def run(guide, control):
        values = {"control": Residuals(), "control_apply_to_uncond": False} if control else {}
        prompts = {"positive": tiny.prompt(0, **values), "negative": tiny.prompt(1, **values)}
        return sampled(guide=guide, **prompts)

    guided, plain = run(True, True), run(False, True)

    assert guided.isfinite().all()
    assert 0 < (guided - plain).norm() < (plain - run(False, False)).norm()


def test_beside_a_lora():
    def with_lora():
        model = tiny.patcher()
        generator = torch.Generator().manual_seed(5)
        weights = {
            f"diffusion_model.{name}": (torch.randn(w.shape, generator=generator) * 0.02,)
            for name, w in model.model.diffusion_model.named_parameters()
            if w.ndim == 2
        }
        assert model.add_patches(weights, 1.0)
        return model

    before = {name: w.clone() for name, w in tiny.patcher().model.named_parameters()}
    guided, plain = sampled(model=with_lora()), sampled(guide=False, model=with_lora())

    assert guided.isfinite().all()
    assert not torch.equal(guided, plain)
    assert not torch.equal(plain, sampled(guide=False))
    comfy.model_management.unload_all_models()
    assert all(torch.equal(w, before[name]) for name, w in tiny.patcher().model.named_parameters())


def test_beside_an_ipadapter():
    """Cross-attention that a node has replaced, for the positive alone, is in the graph."""
    tokens = tiny.noise(1, 4, 64, seed=7) * 3

    def replaced(q, k, v, extra_options):
        out, heads = optimized_attention(q, k, v, extra_options["n_heads"]), extra_options["n_heads"]
        image = tokens.expand(len(q), -1, -1)
        added = optimized_attention(q, image, image, heads).chunk(len(extra_options["cond_or_uncond"]))
        positive = [label == 0 for label in extra_options["cond_or_uncond"]]
        return out + torch.cat([a * on for a, on in zip(added, positive, strict=True)])

    def run(guide, strength=1.0):
        model = tiny.patcher()
        model.set_model_attn2_replace(replaced, "middle", 0)
        return sampled(guide, model, settings={"consistency_scale": strength})

    guided, plain = run(True), run(False)

    assert guided.isfinite().all()
    assert 0 < (guided - plain).norm() < (plain - sampled(guide=False)).norm()


def test_a_readout_head_reads_the_embedding_of_the_time():
    image = sampled(settings={"depth_head": depth.readout_head()})

    assert image.isfinite().all()
    assert not torch.equal(image, sampled(guide=False))


def test_checkpointing_gives_the_same_image():
    torch.testing.assert_close(sampled(settings={"checkpointing": True}), sampled(), rtol=1e-4, atol=1e-4)


def test_the_depth_is_shown_on_the_node_while_a_sampler_runs(monkeypatch):
    shown = []

    class Preview:
        def __init__(self, node_id, steps):
            shown.append((node_id, steps))

        def show(self, done, picture):
            shown.append((done, picture()))

        def end(self):
            shown.append("end")

    monkeypatch.setattr(depth_aware_guidance, "LivePreview", Preview)
    monkeypatch.setattr(depth_aware_node, "executing", lambda: Execution("prompt", "7"))

    sampled(latent=torch.zeros(2, 4, 16, 24), settings={"every_n_steps": 2})

    (first, second) = shown[1:-1]
    assert (shown[0], first[0], second[0], shown[-1]) == (("7", 3), 1, 3, "end")
    assert first[1].shape == (171, 2 * 256, 3)
    assert 0 <= first[1].min() < first[1].max() <= 1


# What goes wrong


def test_a_gradient_that_is_not_finite_leaves_the_step_unguided_and_warns_once(caplog):
    head = depth.head()
    head.head.network.weak.depth.weight.fill_(torch.nan)

    with caplog.at_level(logging.WARNING):
        image = sampled(settings={"depth_head": head})

    plain = sampled(guide=False)
    assert (image - plain).abs().max() < 1e-3 * plain.abs().max()  # rounding, in passes of half the batch
    messages = [r.message for r in caplog.records if "Depth-Aware" in r.message]
    assert len(messages) == 1
    assert messages[0].endswith("its gradient is not finite.")


def test_after_an_overflow_the_next_gradients_are_scaled_less(monkeypatch):
    scales = []
    made = depth_aware_guidance.DepthAwareStep

    def remember(*args, loss_scale, **kwargs):
        scales.append(loss_scale)
        return made(*args, loss_scale=loss_scale, **kwargs)

    evaluate = depth_aware_step.evaluate_with_gradient

    def overflow_first(*args, **kwargs):
        out, gradient = evaluate(*args, **kwargs)
        return out, gradient / 0 if len(scales) == 1 else gradient

    monkeypatch.setattr(depth_aware_guidance, "DepthAwareStep", remember)
    monkeypatch.setattr(depth_aware_step, "evaluate_with_gradient", overflow_first)

    sampled(steps=3)

    assert scales == [1, 1 / 16, 1 / 16]


def test_the_strength_does_not_depend_on_the_loss_scale(monkeypatch):
    made = depth_aware_guidance.DepthAwareStep
    images = []
    for scale in (1.0, 2.0**8):
        monkeypatch.setattr(
            depth_aware_guidance,
            "DepthAwareStep",
            lambda *args, loss_scale, scale=scale, **kwargs: made(*args, loss_scale=scale, **kwargs),
        )
        images += [sampled(settings={"mode": mode}, steps=2) for mode in ("robust", "paper")]

    for one, other in zip(images[:2], images[2:], strict=True):
        assert (one - other).abs().max() < 1e-3 * one.abs().max()


def test_a_head_for_another_model_is_refused_by_the_node():
    with pytest.raises(ValueError, match=r"head_of_test reads 128 channels at o2 .* this model, .* has 32"):
        depth.depth_guided(tiny.patcher(), kind="sdxl")


def test_a_target_of_one_grey_is_refused_by_the_node():
    with pytest.raises(ValueError, match=r"1 of the 1 depth maps are of one grey"):
        depth.depth_guided(tiny.patcher(), target_depth=torch.full((1, 8, 8, 3), 0.5))


class Packed(torch.Tensor):
    """A weight as other packs quantise it."""


def test_quantised_weights_are_refused_before_anything_is_sampled():
    model = tiny.root.__wrapped__("small", "EPS", 0)  # of its own
    layer = model.model.diffusion_model.time_embed[0]
    layer.weight = torch.nn.Parameter(layer.weight.data.as_subclass(Packed), requires_grad=False)
    watched = tiny.watch(model)

    with pytest.raises(ValueError, match=r"needs gradients, which the quantised weights of this model"):
        sampled(model=model)

    assert len(watched) == 0


def test_a_compiled_model_is_refused_by_an_old_pytorch_before_anything_is_sampled(monkeypatch):
    model = tiny.patcher()
    watched = tiny.watch(model)
    model.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL, "torch.compile", lambda executor, *args, **kwargs: executor(*args, **kwargs)
    )
    monkeypatch.delattr(torch.compiler, "set_stance")

    with pytest.raises(ValueError, match=r"Depth-Aware Guidance needs PyTorch 2\.6 or later beside torch"):
        sampled(model=model)

    assert len(watched) == 0


def test_nothing_of_a_run_outlives_it(monkeypatch):
    runs = []
    made = depth_aware_guidance.DepthAwareRun

    def remember(*args):
        run = made(*args)
        runs.append(weakref.ref(run))
        return run

    monkeypatch.setattr(depth_aware_guidance, "DepthAwareRun", remember)
    model = depth.depth_guided(tiny.patcher())
    first = tiny.sample(model)
    second = tiny.sample(model)
    gc.collect()

    assert torch.equal(first, second)
    assert [run() for run in runs] == [None, None]


def test_the_node_has_the_inputs_of_the_contract():
    schema = InnerDepthAwareGuidance.define_schema()

    assert [i.id for i in schema.inputs] == [
        "model",
        "depth_head",
        "consistency_scale",
        "prior_scale",
        "target_scale",
        "mode",
        "start_percent",
        "end_percent",
        "every_n_steps",
        "depth_prior",
        "target_depth",
        "target_mask",
        "checkpointing",
        "self_start_percent",
        "target_end_percent",
    ]
    assert all(i.tooltip for i in schema.inputs)
