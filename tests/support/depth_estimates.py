"""Depth Estimate on a tiny UNet, with a head and a VAE for it."""

import torch

from inner_guidance.depth_head.architectures.pixel_mlp import PixelMLP
from inner_guidance.depth_head.architectures.readout import Readout
from inner_guidance.depth_head.head import DepthHead
from inner_guidance.host.depth.heads import HostedDepthHead, feature_channels
from inner_guidance.nodes.depth_estimate import InnerDepthEstimate
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.node_defaults import execute

SMALL = "a UNet of 32 channels with a context of 16"


def hosted(architecture="pixel_mlp", family=SMALL):
    channels = feature_channels(tiny.patcher("small").get_model_object("diffusion_model"))
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(0)
        if architecture == "readout":
            taps = {n: channels[n] for n in ("r0", "r1")}
            network = Readout(taps, ("r1",), ("time", channels["time"]), 128)
        else:
            network = PixelMLP({n: channels[n] for n in ("o0", "o2")}, ("o0", "o2"), ("o0",), (16,))
    return HostedDepthHead.of(DepthHead(network.requires_grad_(False).eval(), family, name="made_here"))


def latent(*shape, seed=5):
    return {"samples": tiny.noise(*(shape or (1, 4, 16, 16)), seed=seed)}


def estimate(model=None, head=None, **given):
    given = {"model": model or tiny.patcher(), "depth_head": head or hosted(), "ensemble": 1} | given
    if "image" not in given:
        given.setdefault("latent", latent())
    return execute(InnerDepthEstimate, **given)


class EightfoldVAE:
    def spacial_compression_encode(self):
        return 8

    def encode(self, pixels):
        assert pixels.shape[1] % 8 == pixels.shape[2] % 8 == 0
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1)[:, [0, 1, 2]], 8)
        return torch.cat([small, small[:, :1]], 1)
