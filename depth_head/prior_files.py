"""The file of a depth prior. The UNet is of the host's class, so the caller of load_depth_prior makes it."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from .files import damaged, fill, legible, parse, read, text_of, write
from .prior import SIZES, DepthPrior

KIND = "depth_prior"
SUFFIX = ".safetensors"
TARGET = "relative inverse depth in [0, 1], near = 1"
ARCHITECTURE = "host_unet_1"


def save_depth_prior(path: Path, prior: DepthPrior) -> None:
    """Write a prior in half precision, which is enough for guidance."""
    metadata = {
        "architecture": ARCHITECTURE,
        "size": json.dumps(prior.size),
        "target": TARGET,
        "training": json.dumps(dict(prior.training)),
    }
    write(path, KIND, metadata, {name: w.half() for name, w in prior.unet.state_dict().items()})


@torch.inference_mode(False)
def load_depth_prior(path: Path, make_unet: Callable[[], nn.Module]) -> DepthPrior:
    """Read a prior. Its weights are not inference tensors, so autograd accepts them.

    make_unet: the UNet of ARCHITECTURE, float32, with whatever weights.
    Raises ValueError, in one sentence, for a file that is missing, damaged, or something else.
    """
    metadata, tensors = read(path, KIND)
    for name, expected in (("architecture", ARCHITECTURE), ("target", TARGET)):
        found = text_of(path, metadata, name)
        if found != expected:
            raise ValueError(
                f"{legible(path.name)} has the {name} {legible(found)}, which this pack does not know: "
                "update Inner Guidance."
            )
    size = parse(path, metadata, "size", int)
    training = parse(path, metadata, "training", dict)
    if size not in SIZES:
        raise damaged(path, f"its size is {legible(size)}")
    unet = make_unet()
    fill(path, unet, tensors)
    unet.requires_grad_(False).eval()
    return DepthPrior(unet, size, training, legible(path.name))
