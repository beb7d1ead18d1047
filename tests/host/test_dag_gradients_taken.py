"""Where Depth-Aware Guidance takes a gradient, and where it costs nothing: steps, blocks, prompts."""

import logging

import comfy.samplers
import comfy_extras.nodes_easycache as easycache
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from inner_guidance.host.keys import TAG
from inner_guidance.host.steering import gradient_pass
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.depth_models import sampled

pytestmark = pytest.mark.oldest_host


@pytest.fixture
def gradients(monkeypatch):
    """The labels of the chunk and the sigma of every gradient that is taken."""
    taken = []
    evaluate = gradient_pass.evaluate_with_gradient

    def count(executor, rows, layers, products, inputs, **kwargs):
        labels = inputs["transformer_options"]["cond_or_uncond"]
        batch = len(inputs["x"]) // len(labels)
        taken.append((labels[rows[0] // batch], float(inputs["t"].max())))
        return evaluate(executor, rows, layers, products, inputs, **kwargs)

    monkeypatch.setattr(gradient_pass, "evaluate_with_gradient", count)
    return taken


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
    evaluate = gradient_pass.evaluate_with_gradient

    def look(executor, rows, layers, products, inputs, *, constant, **kwargs):
        differentiated.append({layer.number for layer in layers} - {layer.number for layer in constant})
        return evaluate(executor, rows, layers, products, inputs, constant=constant, **kwargs)

    monkeypatch.setattr(gradient_pass, "evaluate_with_gradient", look)
    deeper = depth.head(weak="o1")

    only, both = (
        sampled(settings={"depth_head": deeper, "target_depth": target}, steps=1)
        for target in (None, depth.target())
    )

    assert differentiated == [{1}, {1, 2}]
    tiny.assert_steered(only, both)


def test_in_between_the_last_direction_is_used_again():
    every = sampled(steps=6)
    reused = sampled(steps=6, settings={"every_n_steps": 2})
    plain = sampled(guide=False, steps=6)

    tiny.assert_steered(reused, plain)
    tiny.assert_steered(every, reused)
    assert (every - reused).norm() < (every - plain).norm()


@pytest.mark.parametrize("every_n_steps", [1, 2])
def test_a_skipped_step_of_a_cache_takes_the_last_direction(gradients, every_n_steps, caplog):
    """All steps but the first two are skipped; each next one tries to make up for the missing gradient."""
    model = easycache.EasyCacheNode.execute(tiny.patcher(), 10.0, 0.0, 1.0, False).result[0]
    guided = depth.depth_guided(model, every_n_steps=every_n_steps)
    seen, denoised = tiny.watch(guided), []

    tiny.sample(guided, steps=6, callback=lambda i, x0, *_: denoised.append(x0.double()))

    assert "has no effect" not in caplog.text
    assert len(gradients) == {1: 6, 2: 5}[every_n_steps]
    uncond, cond = seen.passes[-1].out.double().chunk(2)
    assert (denoised[-1] - (uncond + 4 * (cond - uncond))).abs().max() > 1e-4


def test_a_cache_that_skips_whole_steps_only_delays_a_gradient(gradients):
    """As LazyCache does; it skips steps 2 and 4, in which every_n_steps wants one."""
    model, kept = tiny.patcher(), []

    def skip(executor, *args, **kwargs):
        kept.append(kept[-1] if len(kept) in (2, 4) else executor(*args, **kwargs))
        return kept[-1]

    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "lazycache", skip)

    sampled(model=model, settings={"every_n_steps": 2}, steps=6)

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 6)
    assert [sigma for _, sigma in gradients] == [pytest.approx(float(sigmas[i])) for i in (0, 3, 5)]


@pytest.mark.parametrize("settings", [{"every_n_steps": 2}, {"start_percent": 0.3}])
def test_a_cache_of_the_steps_has_seen_steps_without_a_gradient(settings, gradients):
    """It compares the latent with tensors that it keeps from them, which are inference tensors."""
    model = easycache.EasyCacheNode.execute(tiny.patcher(), 0.2, 0.15, 0.95, False).result[0]

    image = sampled(model=model, settings=settings, steps=12)

    assert len(gradients) > 1
    tiny.assert_steered(image, sampled(model=model, guide=False, steps=12))


def test_guidance_without_a_negative(gradients):
    guided, plain = (
        tiny.sample_with(tiny.BasicGuider(model, tiny.prompt(0)))
        for model in (depth.depth_guided(tiny.patcher()), tiny.patcher())
    )
    assert [label for label, _ in gradients] == [0, 0, 0]
    tiny.assert_steered(guided, plain)

    gradients.clear()
    depth.assert_steers(cfg=1.0)
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


# Beside Self-Attention Guidance


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
    # The main pass in two parts, the second with the gradient, then the extra pass of the negative.
    assert seen[tiny.guided, depth.depth_guided] == [((1,), False), ((0,), False), ((1,), True)] * 2
    other_order = run(depth.depth_guided, tiny.guided)
    alone = [run(), run(tiny.guided), run(depth.depth_guided)]

    torch.testing.assert_close(both, other_order, rtol=1e-3, atol=1e-3)
    assert all(not torch.allclose(both, image, rtol=1e-2, atol=1e-2) for image in alone)
