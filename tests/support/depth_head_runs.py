"""Train Depth Head on a tiny model and a few images."""

import torch

from inner_guidance.nodes.train_depth_head import InnerTrainDepthHead
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.node_defaults import execute


class FourfoldVAE:
    """Pixels, averaged over 4 x 4, for latents: what a VAE is to the node."""

    def vae_encode_crop_pixels(self, pixels):
        height, width = (size // 4 * 4 for size in pixels.shape[1:3])
        top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
        return pixels[:, top : top + height, left : left + width, :3]

    def encode(self, pixels):
        pixels = self.vae_encode_crop_pixels(pixels).movedim(-1, 1)
        small = torch.nn.functional.avg_pool2d(pixels, 4)
        return 8 * torch.cat([small, small.mean(1, keepdim=True)], 1) - 4


def pairs(count=6, height=64, width=48):
    """Images whose brightness is their depth."""
    coarse = torch.rand(count, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    depth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").movedim(1, -1)
    return depth.expand(-1, -1, -1, 3).contiguous()


def train(model=None, images=None, depths=None, **changed):
    images = pairs() if images is None else images
    given = {
        "model": model or tiny.patcher("small"),
        "vae": FourfoldVAE(),
        "images": images,
        "depths": images if depths is None else depths,
        "steps": 4,
        "batch_size": 2,
    }
    return execute(InnerTrainDepthHead, **given | changed)


def weights(head):
    return head.head.network.state_dict()
