"""The file of a depth head: in this pack's format, or a public Readout head (readout_files.py)."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .architectures import ARCHITECTURES, architecture_of, build
from .files import damaged, fill, legible, parse, read, write
from .head import DepthHead
from .metrics import DepthRange
from .readout_files import read_readout

KIND = "depth_head"
SUFFIX, READOUT_SUFFIX = ".safetensors", ".pt"
TARGET = "relative inverse depth in [0, 1], near = 1"


def save_depth_head(path: Path, head: DepthHead) -> None:
    """Write a head in this pack's format, whatever format it was loaded from."""
    metadata = {
        "architecture": architecture_of(head.network),
        "config": json.dumps(head.network.config),
        "model_family": head.model_family,
        "taps": json.dumps(head.network.taps),
        "target": TARGET,
        "depth_range": json.dumps(asdict(head.depth_range)),
        "training": json.dumps(dict(head.training)),
    }
    write(path, KIND, metadata, head.network.state_dict())


@torch.inference_mode(False)
def load_depth_head(path: Path) -> DepthHead:
    """Read a head. Its weights are not inference tensors, so autograd accepts them.

    Raises ValueError, in one sentence, for a file that is missing, damaged, or something else.
    """
    if path.suffix == READOUT_SUFFIX:
        return read_readout(path)
    metadata, tensors = read(path, KIND)
    name, target, architecture, family = (
        legible(path.name),
        *map(metadata.get, ("target", "architecture", "model_family")),
    )
    if target != TARGET:
        raise ValueError(f"{name} predicts {legible(target)}, this pack reads {TARGET}.")
    if architecture is None:
        raise damaged(path, "its architecture is missing")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{name} has the architecture {legible(architecture)}, which this pack does not know: update "
            "Inner Guidance."
        )
    if family is None or legible(family) != family:
        raise damaged(path, f"its model_family is {legible(family)}")
    config, distances, training = (
        parse(path, metadata, entry, dict) for entry in ("config", "depth_range", "training")
    )
    try:
        with torch.device("meta"):
            network = build(architecture, config)
        depth_range = _depth_range(**distances)
    except (TypeError, ValueError) as error:
        raise damaged(path, legible(error, 200)) from error
    fill(path, network, tensors)
    network.requires_grad_(False).eval()
    return DepthHead(network, family, depth_range, training, name)


def _depth_range(near: Any, far: Any) -> DepthRange:
    """Raises ValueError or TypeError for anything but two distances."""
    try:
        finite = math.isfinite(near) and math.isfinite(far)
    except OverflowError:
        finite = False
    if not finite:
        raise ValueError("its distances are not finite")
    return DepthRange(float(near), float(far))
