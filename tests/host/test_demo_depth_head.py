"""Train Depth Head on the demo model, which needs all of a host."""

import pytest
import torch

from inner_guidance.demo import model as demo
from inner_guidance.demo.ray_casting import render
from inner_guidance.demo.scenes import sample_scene
from inner_guidance.depth_head.metrics import DepthRange, measure
from inner_guidance.nodes.train_depth_head import InnerTrainDepthHead
from inner_guidance.tests.support.node_defaults import execute

RANGE = DepthRange(near=1.5, far=12.0)


@pytest.mark.slow
def test_a_head_for_the_demo_model_from_few_renders():
    """32 renders of 128 px: better than their mean depth map, which even knows the held-out ones."""
    renders = [render(sample_scene(20_000 + i), size=128) for i in range(32)]
    images = torch.stack([seen.rgb.movedim(0, -1) for seen in renders])
    depths = torch.stack([RANGE.relative(seen.depth)[..., None] for seen in renders])

    head, _ = execute(
        InnerTrainDepthHead,
        model=demo.load_model(demo.WEIGHTS / demo.UNET_FILE),
        vae=demo.load_vae(demo.WEIGHTS / demo.AUTOENCODER_FILE),
        images=images,
        depths=depths,
        steps=100,
        near=RANGE.near,
        far=RANGE.far,
    )

    labels = depths.movedim(-1, 1)
    mean_map = measure(labels.mean(0, keepdim=True).expand_as(labels), labels, RANGE)
    assert head.head.training["abs_rel"]["strong"]["200"] < 0.9 * mean_map.abs_rel
    assert head.head.model_family == "the demo model of Inner Guidance"
