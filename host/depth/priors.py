"""The depth prior in the host: a UNet of the host's class, trained on the host's device."""

import logging
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from torch import Tensor, nn

from ...depth_head.prior import DepthPrior, draw, train_prior
from ...depth_head.prior_report import draw_prior_report, last_loss

# No attention: at 64 px the middle block has 8 x 8 tokens, and its convolutions see all of the map.
UNET_CONFIG = {
    "image_size": 64,
    "in_channels": 1,
    "out_channels": 1,
    "model_channels": 32,
    "channel_mult": (1, 1, 2, 2),
    "num_res_blocks": 1,
    "transformer_depth": [0, 0, 0, 0],
    "transformer_depth_output": [0] * 8,
    "transformer_depth_middle": -1,
    "num_heads": 4,
    "dtype": torch.float32,
}

# Number of depth maps that the prior draws for the report.
SHOWN = 6
# Memory of a training step for each pixel of its batch: twice what the backward pass needs.
BYTES_PER_PIXEL = 10_400


def make_unet() -> nn.Module:
    """The prior's UNet with weights to start training from. Call it outside inference mode."""
    unet = UNetModel(**UNET_CONFIG, operations=comfy.ops.disable_weight_init)
    for module in unet.modules():
        # The host's layers leave their weights uninitialised.
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    last_of_blocks = [block.out_layers[-1] for block in unet.modules() if isinstance(block, ResBlock)]
    for layer in (*last_of_blocks, unet.out[-1]):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    return unet


@torch.inference_mode(False)
def train_depth_prior(
    depths: Tensor,
    size: int,
    *,
    seed: int,
    on_step: Callable[[int, list[float]], None],
    **settings: Any,
) -> tuple[DepthPrior, Tensor]:
    """A prior trained on depth maps (N, 1, h, w), and the picture of its report.

    settings: steps, batch_size and learning_rate (depth_head/prior.py).
    """
    device = comfy.model_management.get_torch_device()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # no other device's
        unet = make_unet()
    comfy.model_management.free_memory(BYTES_PER_PIXEL * settings["batch_size"] * size**2, device)
    unet.to(device)
    interruption = comfy.model_management.InterruptProcessingException
    losses = train_prior(
        unet,
        depths.clone(),
        size,
        seed=seed % 2**63,
        on_step=on_step,
        interruption=interruption,
        **settings,
    )
    if len(losses) < settings["steps"]:
        logging.info(
            "Train Depth Prior: interrupted after %d steps; what it has learned is kept.", len(losses)
        )
    summary = settings | {
        "maps": len(depths),
        "seed": seed,
        "steps": len(losses),
        "loss": last_loss(losses),
    }
    prior = DepthPrior(unet, size, summary)
    try:
        drawn = draw(prior, SHOWN, seed % 2**63)
    except interruption:
        logging.info("Train Depth Prior: interrupted while it drew the report; the prior is kept.")
        drawn = torch.zeros(0, 1, size, size)
    picture = draw_prior_report(losses, drawn)
    unet.to(comfy.model_management.unet_offload_device())
    return prior, picture
