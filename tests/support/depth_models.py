"""Depth heads and priors with random weights for the tiny models, and Depth-Aware Guidance by them."""

import torch

from inner_guidance.depth_head.architectures.latent import LatentDepth
from inner_guidance.depth_head.architectures.pixel_mlp import PixelMLP
from inner_guidance.depth_head.architectures.readout import Readout
from inner_guidance.depth_head.head import DepthHead
from inner_guidance.depth_head.prior import DepthPrior
from inner_guidance.host.depth.heads import HostedDepthHead, latent_space
from inner_guidance.nodes.depth_aware_guidance import InnerDepthAwareGuidance
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.node_defaults import execute

FAMILIES = {
    "small": "a UNet of 32 channels with a context of 16",
    "sd15": "a UNet of 32 channels with a context of 16",
    "sdxl": "a UNet of 32 channels with a context of 16",
    "inpaint": "a UNet of 32 channels with a context of 16",
}
PRIOR_SIZE = 16
EVERYWHERE = {
    "consistency_scale": 1.0,
    "prior_scale": 1.0,
    "target_scale": 1.0,
    "self_start_percent": 0.0,
    "target_end_percent": 1.0,
}


def head(kind="small", seed=0, weak=None):
    """The paper's pixel MLP, on two blocks of a tiny model; the weak branch on one of them, the last."""
    taps = {"small": {"o1": 64, "o2": 32}, "inpaint": {"o1": 64, "o2": 32}}.get(kind, {"o3": 128, "o4": 128})
    if kind == "sdxl":
        taps = {"o2": 128, "o4": 64}
    with torch.inference_mode(False):
        torch.manual_seed(seed)
        network = PixelMLP(taps, strong=tuple(taps), weak=(weak or list(taps)[-1],))
        network.requires_grad_(False).eval()
    return HostedDepthHead.of(DepthHead(network, FAMILIES[kind], name="head_of_test"))


def latent_head(model, seed=0):
    """A latent head for the latents of a model."""
    space = latent_space(model)
    with torch.inference_mode(False):
        torch.manual_seed(seed)
        network = LatentDepth(space.channels, widths=(16, 16)).requires_grad_(False).eval()
    return HostedDepthHead.of(DepthHead(network, space, name="latent_head_of_test"))


def readout_head(seed=0):
    """A Readout head, which also reads the embedding of the time."""
    taps = {"r0": 64, "r1": 64, "r2": 32, "r3": 32}
    with torch.inference_mode(False):
        torch.manual_seed(seed)
        network = Readout(taps, ["r2"], ("time", 128), projection=128).requires_grad_(False).eval()
    return HostedDepthHead.of(DepthHead(network, FAMILIES["small"], name="readout_of_test"))


class TinyPrior(torch.nn.Module):
    """Predicts something smooth."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 1, 3, padding=1)
        )

    def forward(self, x, timesteps):
        return self.layers(x) + timesteps.view(-1, 1, 1, 1) / 1000


def prior(seed=0):
    with torch.inference_mode(False):
        torch.manual_seed(seed)
        unet = TinyPrior().requires_grad_(False).eval()
    return DepthPrior(unet, PRIOR_SIZE)


def target(count=1):
    """A target_depth image: near on the left."""
    ramp = torch.linspace(1, 0, 64).expand(count, 64, 64)
    return ramp[..., None].expand(-1, -1, -1, 3)


def depth_guided(model, *, kind="small", depth_head=None, **settings):
    """The model with Depth-Aware Guidance behind it: every loss whose input is there, throughout the run."""
    everywhere = {name: value for name, value in EVERYWHERE.items() if name != "prior_scale"}
    if "depth_prior" in settings:
        everywhere = EVERYWHERE
    settings = {"model": model, "depth_head": depth_head or head(kind)} | everywhere | settings
    return execute(InnerDepthAwareGuidance, **settings)[0]


def sampled(guide=True, model=None, settings=None, **kwargs):
    model = model or tiny.patcher()
    return tiny.sample(depth_guided(model, **settings or {}) if guide else model, **kwargs)


def assert_steers(**kwargs):
    """That the guidance has an effect in a run of these arguments of `sampled`; the guided samples."""
    image = sampled(**kwargs)
    tiny.assert_steered(image, sampled(**kwargs, guide=False))
    return image
