"""Train Depth Head on the demo model, and its latent head, which need all of a host."""

import pytest
import torch
import torch.nn.functional as F

from inner_guidance.demo import model as demo
from inner_guidance.demo.ray_casting import render
from inner_guidance.demo.scenes import sample_scene
from inner_guidance.depth_head.head_files import load_depth_head
from inner_guidance.depth_head.metrics import DepthRange, measure
from inner_guidance.host.depth.estimation import encode_whole, estimate_depth
from inner_guidance.host.depth.heads import HostedDepthHead
from inner_guidance.nodes.train_depth_head import InnerTrainDepthHead
from inner_guidance.tests.support.node_defaults import execute

HELD_OUT = 1_300_000
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
        steps=50,
        near=RANGE.near,
        far=RANGE.far,
    )

    labels = depths.movedim(-1, 1)
    mean_map = measure(labels.mean(0, keepdim=True).expand_as(labels), labels, RANGE)
    assert head.head.training["abs_rel"]["strong"]["200"] < 0.9 * mean_map.abs_rel
    assert head.head.model_family == "the demo model of Inner Guidance"


def test_the_shipped_latent_head_reads_held_out_renders():
    """Far better than their mean depth map; the file is small."""
    path = demo.WEIGHTS / demo.LATENT_HEAD_FILE
    assert path.stat().st_size < 1.1 * 10**6
    head = HostedDepthHead.of(load_depth_head(path))
    renders = [render(sample_scene(HELD_OUT + i)) for i in range(4)]
    model = demo.load_model(demo.WEIGHTS / demo.UNET_FILE)
    vae = demo.load_vae(demo.WEIGHTS / demo.AUTOENCODER_FILE)
    latents = encode_whole(model, vae, torch.stack([seen.rgb.movedim(0, -1) for seen in renders]))

    depth = estimate_depth(model, head, latents, 0.1, 1, 0)

    labels = torch.stack([RANGE.relative(seen.depth)[None] for seen in renders])
    labels = F.interpolate(labels, depth.shape[-2:], mode="area")
    mean_map = measure(labels.mean(0, keepdim=True).expand_as(labels), labels, RANGE)
    assert measure(depth, labels, RANGE).abs_rel < min(0.1, 0.6 * mean_map.abs_rel)
