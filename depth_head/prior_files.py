"""A depth prior's file. The network is the host's, so whoever loads one says how to make it."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from .files import fill, parse, read, write
from .prior import SIZES, DepthPrior

KIND = "depth_prior"
SUFFIX = ".safetensors"
TARGET = "relative inverse depth in [0, 1], near = 1"
ARCHITECTURE = "host_unet_1"


def save_depth_prior(path: Path, prior: DepthPrior) -> None:
    """Write a prior, in half precision, which halves the file and loses nothing that guidance would see."""
    metadata = {
        "architecture": ARCHITECTURE,
        "size": json.dumps(prior.size),
        "target": TARGET,
        "training": json.dumps(dict(prior.training)),
    }
    write(path, KIND, metadata, {name: w.half() for name, w in prior.unet.state_dict().items()})


@torch.inference_mode(False)
def load_depth_prior(path: Path, make_unet: Callable[[], nn.Module]) -> DepthPrior:
    """Read a prior; its weights are no inference tensors, so gradients pass it.

    make_unet: the UNet of ARCHITECTURE, float32, with whatever weights.
    Raises ValueError, in one sentence, for a file that is missing, damaged, or something else.
    """
    metadata, tensors = read(path, KIND)
    for name, expected in (("architecture", ARCHITECTURE), ("target", TARGET)):
        if metadata.get(name) != expected:
            raise ValueError(
                f"{path.name} has the {name} {metadata.get(name)}, which this pack does not know: update "
                "Inner Guidance."
            )
    size, training = (parse(path, metadata, name) for name in ("size", "training"))
    if size not in SIZES or not isinstance(training, dict):
        raise ValueError(f"{path.name} is damaged (its size is {size}): fetch or save it again.")
    unet = make_unet()
    fill(path, unet, tensors)
    unet.requires_grad_(False).eval()
    return DepthPrior(unet, size, training, path.name)
