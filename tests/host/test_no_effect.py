"""What has no effect in a run is named in the log, once."""

from dataclasses import replace

import comfy.sample
import comfy.samplers
import pytest
import torch

from inner_guidance.depth_head.head import PUBLIC_READOUT
from inner_guidance.host.depth.heads import HostedDepthHead
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.depth_models import sampled

pytestmark = pytest.mark.oldest_host


def test_a_graph_of_defaults_says_nothing(said):
    defaults = {"self_start_percent": 0.6, "target_end_percent": 0.6}

    tiny.sample(tiny.guided(depth.depth_guided(tiny.patcher(), **defaults)), steps=4)

    assert said() == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"start_percent": 0.7, "end_percent": 0.3},
            "Depth-Aware Guidance: no effect of consistency_scale and target_scale in this run: "
            "start_percent (0.7) is not below end_percent (0.3). Lower start_percent or raise end_percent.",
        ),
        (
            {"start_percent": 0.7, "target_end_percent": 0.6},
            "Depth-Aware Guidance: no effect of target_scale in this run: start_percent (0.7) is not below "
            "target_end_percent (0.6). Lower start_percent or raise target_end_percent.",
        ),
        (
            {"self_start_percent": 0.4, "end_percent": 0.8},
            "Depth-Aware Guidance: no effect of consistency_scale in this run: none of its 2 steps is "
            "between self_start_percent (0.4) and end_percent (0.8). Lower self_start_percent, raise "
            "end_percent, or sample more steps.",
        ),
    ],
    ids=["nothing", "no target", "no step"],
)
def test_strengths_without_a_step_are_named_once_a_run(settings, sentence, said):
    sampled(settings={"target_depth": depth.target()} | settings, steps=2)

    assert said() == [sentence]


def test_a_range_that_ends_where_it_starts_is_empty_and_says_so(said):
    """Also where a step is exactly there, as the second of three is at a half."""
    model = tiny.patcher()
    model_sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, "normal", 3)
    assert model_sampling.percent_to_sigma(0.5) in sigmas.tolist()

    image = tiny.sample(tiny.guided(model, start_percent=0.5, end_percent=0.5), steps=3)

    assert torch.equal(image, tiny.sample(model, steps=3))
    (sentence,) = said()
    assert "start_percent (0.5) is not below end_percent (0.5)" in sentence


def test_sag_without_a_step_says_so(said):
    tiny.sample(tiny.guided(tiny.patcher(), start_percent=0.41, end_percent=0.42), steps=2)

    (sentence,) = said()
    assert sentence.startswith(
        "Self-Attention Guidance: no effect of scale in this run: none of its 2 steps is between "
        "start_percent (0.41) and end_percent (0.42)."
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prior_scale": 2.0}, "prior_scale has no effect without a prior. Connect depth_prior."),
        ({"target_scale": 2.0}, "target_scale has no effect without a target. Connect target_depth."),
        ({"target_blur": 0.125}, "target_blur has no effect without a target. Connect target_depth."),
        (
            {"target_scale": 0.0, "target_mask": torch.ones(1, 8, 8)},
            "target_mask has no effect without a target. Connect target_depth.",
        ),
        (
            {"target_depth": depth.target(), "target_mask": torch.zeros(1, 8, 8)},
            "target_mask is black, so target_depth has no effect. Paint white where it applies.",
        ),
        (
            {"consistency_scale": 0.0, "prior_scale": 0.0, "target_scale": 0.0},
            "it does nothing, because all strengths are 0. Raise one, or bypass the node.",
        ),
        (
            {"consistency_scale": 0.0},
            "it does nothing, because no strength above 0 has the input that it needs. Raise "
            "consistency_scale, or connect depth_prior or target_depth.",
        ),
    ],
    ids=["prior", "target", "blur", "mask", "black mask", "all 0", "nothing connected"],
)
def test_what_is_set_and_has_no_effect_is_named(settings, sentence, said):
    depth.depth_guided(tiny.patcher(), **settings)

    assert said() == [f"Depth-Aware Guidance: {sentence}"]


def test_a_target_that_is_flat_where_it_applies_says_so(said):
    """It steers as no target does."""
    halves = torch.ones(1, 64, 64, 3)
    halves[:, :32] = 0.0
    mask = torch.zeros(1, 64, 64)
    mask[:, 40:] = 1.0

    found = [
        tiny.sample(depth.depth_guided(tiny.patcher(), **settings), steps=2)
        for settings in ({}, {"target_depth": halves, "target_mask": mask})
    ]

    assert torch.equal(*found)
    assert said() == [
        "Depth-Aware Guidance: no effect of target_scale in image 1 of the batch: within the frame of the "
        "image and target_mask, its target_depth has a single grey value. Connect a depth map with near and "
        "far there, or enlarge target_mask."
    ]


def test_sag_above_all_attention_says_so(said):
    tiny.sample(tiny.guided(tiny.patcher(), threshold=10.0), steps=2)

    assert said() == [
        "Self-Attention Guidance: no effect of scale in this run: no place has attention above threshold "
        "(10). Lower threshold."
    ]


def test_sag_without_attention_in_the_inpainted_area_does_not_say_that_there_is_none_elsewhere(said):
    """The average of attention is 1, so unless it is flat some place is above that."""
    mask = torch.zeros(1, 1, 16, 16)

    tiny.sample(tiny.guided(tiny.patcher(), threshold=1.0), noise_mask=mask, steps=2)

    assert said() == [
        "Self-Attention Guidance: no effect of scale in this run: no place of the inpainted area has "
        "attention above threshold (1). Lower threshold."
    ]


@pytest.mark.parametrize("name", ["scale", "blur_sigma"])
def test_sag_at_0_says_so(name, said):
    tiny.guided(tiny.patcher(), **{name: 0.0})

    assert said() == [
        f"Self-Attention Guidance: it does nothing, because {name} is 0. Raise it, or bypass the node."
    ]


def test_consistency_with_a_weak_branch_that_was_never_trained_counts_as_0(said):
    head = replace(depth.readout_head().head, training={"source": PUBLIC_READOUT})
    public = HostedDepthHead.of(head)

    model = depth.depth_guided(tiny.patcher(), depth_head=public)

    assert model.model_options == tiny.patcher().model_options
    first, second = said()
    assert first.startswith("Depth-Aware Guidance: consistency_scale counts as 0, because the weak branch")
    assert "it does nothing" in second
    with_target = {"depth_head": public, "target_depth": depth.target()}
    assert torch.equal(
        sampled(settings=with_target, steps=1),
        sampled(settings=with_target | {"consistency_scale": 0.0}, steps=1),
    )


def test_depth_in_context_windows_is_not_read_and_says_so(said):
    latent = torch.zeros(4, 4, 16, 16)
    model = depth.depth_guided(tiny.windowed(tiny.patcher()))

    tiny.sample(model, latent, steps=1)

    (sentence,) = said()
    assert "context windows" in sentence
