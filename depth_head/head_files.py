"""The file of a depth head: in this pack's format, or a public Readout head (readout_files.py)."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .architectures import ARCHITECTURES, LATENT, architecture_of, build
from .architectures.latent import ESTIMATE
from .calibration_files import read_calibration, stored
from .files import damaged, fill, is_name, legible, name_of, parse, read, text_of, write
from .head import DepthHead, LatentSpace
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
        "target": TARGET,
        "depth_range": json.dumps(asdict(head.depth_range)),
        "training": json.dumps(dict(head.training)),
    }
    if isinstance(head.model_family, LatentSpace):
        metadata["latent_space"] = json.dumps(asdict(head.model_family))
    else:
        metadata |= {"model_family": head.model_family, "taps": json.dumps(head.network.taps)}
    described, maps = stored(head.calibration)
    write(path, KIND, metadata | described, head.network.state_dict() | maps)


@torch.inference_mode(False)
def load_depth_head(path: Path) -> DepthHead:
    """Read a head. Its weights are not inference tensors, so autograd accepts them.

    Raises ValueError, in one sentence, for a file that is missing, damaged, or something else.
    """
    if path.suffix.lower() == READOUT_SUFFIX:  # the host lists .PT, too
        return read_readout(path)
    metadata, tensors = read(path, KIND)
    name = legible(path.name)
    target, architecture = (text_of(path, metadata, entry) for entry in ("target", "architecture"))
    if target != TARGET:
        raise ValueError(f"{name} predicts {legible(target)}, this pack reads {TARGET}.")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{name} has the architecture {legible(architecture)}, which this pack does not know: update "
            "Inner Guidance."
        )
    family = (
        _latent_space(path, metadata) if architecture == LATENT else name_of(path, metadata, "model_family")
    )
    config, distances, training = (
        parse(path, metadata, entry, dict) for entry in ("config", "depth_range", "training")
    )
    try:
        with torch.device("meta"):
            network = build(architecture, config)
        depth_range = _depth_range(**distances)
    except (TypeError, ValueError) as error:
        raise damaged(path, legible(error, 200)) from error
    if isinstance(family, LatentSpace) and network.taps != {ESTIMATE: family.channels}:
        raise damaged(path, "its latent_space has other channels than its network")
    calibration = read_calibration(path, metadata, tensors)
    fill(path, network, tensors)
    network.requires_grad_(False).eval()
    return DepthHead(network, family, depth_range, training, name, calibration)


def _latent_space(path: Path, metadata: Mapping[str, str]) -> LatentSpace:
    entries = parse(path, metadata, "latent_space", dict)
    kinds = {"name": str, "channels": int, "scale": str}
    if {key: type(value) for key, value in entries.items()} != kinds or not all(
        is_name(str(value)) for value in entries.values()
    ):
        raise damaged(path, f"its latent_space is {legible(entries)}")
    return LatentSpace(**entries)


def _depth_range(near: Any, far: Any) -> DepthRange:
    """Raises ValueError or TypeError for anything but two distances."""
    try:
        finite = math.isfinite(near) and math.isfinite(far)
    except OverflowError:
        finite = False
    if not finite:
        raise ValueError("its distances are not finite")
    return DepthRange(float(near), float(far))
