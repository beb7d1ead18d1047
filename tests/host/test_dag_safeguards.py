"""Depth-Aware Guidance where something is wrong: gradients that overflow, what is refused, what is left."""

import gc
import logging
import weakref

import pytest
import torch

from inner_guidance.host.steering import dag_run, gradient_pass
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.depth_models import sampled

pytestmark = pytest.mark.oldest_host


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
    made = dag_run.DepthFeatureStep

    def remember(*args, loss_scale, **kwargs):
        scales.append(loss_scale)
        return made(*args, loss_scale=loss_scale, **kwargs)

    evaluate = gradient_pass.evaluate_with_gradient

    def overflow_first(*args, **kwargs):
        out, (gradient,) = evaluate(*args, **kwargs)
        return out, [gradient / 0 if len(scales) == 1 else gradient]

    monkeypatch.setattr(dag_run, "DepthFeatureStep", remember)
    monkeypatch.setattr(gradient_pass, "evaluate_with_gradient", overflow_first)

    sampled(steps=3)

    assert scales == [1, 1 / 16, 1 / 16]


def test_the_strength_does_not_depend_on_the_loss_scale(monkeypatch):
    made = dag_run.DepthFeatureStep
    images = []
    for scale in (1.0, 2.0**8):
        monkeypatch.setattr(
            dag_run,
            "DepthFeatureStep",
            lambda *args, loss_scale, scale=scale, **kwargs: made(*args, loss_scale=scale, **kwargs),
        )
        images += [
            sampled(settings={"mode": mode, "consistency_scale": scale}, steps=2)
            for mode, scale in (("robust", 1.0), ("paper", 100.0))
        ]

    for one, other in zip(images[:2], images[2:], strict=True):
        assert (one - other).abs().max() < 1e-3 * one.abs().max()
    for image in images:
        tiny.assert_steered(image, sampled(guide=False, steps=2))


def test_a_head_for_another_model_is_refused_by_the_node():
    with pytest.raises(ValueError, match=r"head_of_test reads 128 channels at o2 .* this model, .* has 32"):
        depth.depth_guided(tiny.patcher(), kind="sdxl")


def test_a_target_of_one_grey_is_refused_by_the_node():
    with pytest.raises(ValueError, match=r"1 of the 1 depth maps have a single grey value"):
        depth.depth_guided(tiny.patcher(), target_depth=torch.full((1, 8, 8, 3), 0.5))


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (torch.zeros(0, 64, 64), "target_mask is empty: connect a mask, or none"),
        (torch.full((1, 64, 64), torch.nan), "target_mask has values that are not numbers: check the node"),
    ],
    ids=["empty", "not a number"],
)
def test_a_mask_that_says_nothing_is_refused_by_the_node(mask, sentence):
    with pytest.raises(ValueError, match=sentence):
        depth.depth_guided(tiny.patcher(), target_depth=depth.target(), target_mask=mask)


def test_what_is_darker_than_black_in_a_mask_is_black():
    """An inverted mask of 8 bits is so; negative weights would push those places away from the target."""
    half = torch.zeros(1, 16, 16)
    half[:, 8:] = 1.0

    found = [
        sampled(settings={"target_depth": depth.target(), "target_mask": mask}, steps=1)
        for mask in (half, torch.where(half > 0, 255.0, -254.0))
    ]

    assert torch.equal(*found)


class Packed(torch.Tensor):
    """A weight as other packs quantise it."""


def test_quantised_weights_are_refused_before_anything_is_sampled():
    model = tiny.root.__wrapped__("small", "EPS", 0, torch.float32)  # of its own
    layer = model.model.diffusion_model.time_embed[0]
    layer.weight = torch.nn.Parameter(layer.weight.data.as_subclass(Packed), requires_grad=False)
    watched = tiny.watch(model)

    with pytest.raises(ValueError, match=r"needs gradients, which the quantised weights of this model"):
        sampled(model=model)

    assert len(watched) == 0


def test_nothing_of_a_run_outlives_it(monkeypatch):
    runs = []
    made = dag_run.DepthAwareRun

    def remember(*args):
        run = made(*args)
        runs.append(weakref.ref(run))
        return run

    monkeypatch.setattr(dag_run, "DepthAwareRun", remember)
    model = depth.depth_guided(tiny.patcher())
    first = tiny.sample(model)
    second = tiny.sample(model)
    gc.collect()

    assert torch.equal(first, second)
    assert [run() for run in runs] == [None, None]
