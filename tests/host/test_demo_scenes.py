"""InnerDemoScenes, and the demo model's depth head on them."""

import comfy.model_management
import pytest
import torch

from inner_guidance.demo.ray_casting import render
from inner_guidance.demo.scenes import FAR, NEAR, sample_scene
from inner_guidance.depth_head.metrics import DepthRange, measure
from inner_guidance.nodes.demo_model import InnerLoadDemoModel
from inner_guidance.nodes.demo_scenes import InnerDemoScenes
from inner_guidance.nodes.depth_estimate import InnerDepthEstimate
from inner_guidance.tests.support.node_defaults import execute


def test_scenes_are_the_renders_of_their_numbers():
    images, depths, main_objects = InnerDemoScenes.execute(7, 2, 64).result

    assert images.shape == depths.shape == (2, 64, 64, 3)
    assert main_objects.splitlines() == [sample_scene(seed).caption.split(",")[0] for seed in (7, 8)]
    for image, depth, seed in zip(images, depths, (7, 8), strict=True):
        seen = render(sample_scene(seed), 64)
        assert torch.equal(image, seen.rgb.permute(1, 2, 0))
        expected = (1 / seen.depth.double() - 1 / FAR) / (1 / NEAR - 1 / FAR)
        torch.testing.assert_close(depth.double(), expected[..., None].expand(-1, -1, 3), rtol=0, atol=1e-6)


def test_no_scene_leaves_the_range_of_distances():
    _, depths, _ = InnerDemoScenes.execute(0, 60, 32).result

    assert depths.min() > 0
    assert depths.max() < 1


def test_drawing_can_be_interrupted():
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        InnerDemoScenes.execute(0, 1000, 64)


@pytest.mark.slow
def test_the_demo_models_head_reads_their_depth():
    """Of scenes that neither model nor head has seen: better than their mean depth map, which knows them."""
    model, clip, vae, head, *_ = InnerLoadDemoModel.execute().args
    images, depths, _ = InnerDemoScenes.execute(1_060_000, 32, 256).result
    empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))

    _, mask, _ = execute(
        InnerDepthEstimate, model=model, depth_head=head, image=images, vae=vae, positive=empty, ensemble=1
    )

    labels, depth_range = depths[..., 0][:, None], DepthRange(NEAR, FAR)
    found = measure(mask[:, None], labels, depth_range)
    mean_map = measure(labels.mean(0, keepdim=True).expand_as(labels), labels, depth_range)
    assert found.abs_rel < 0.75 * mean_map.abs_rel
    assert found.delta1 > 0.9
