"""A depth head's file: ours, or a public Readout head (readout_files.py)."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from .architectures import ARCHITECTURES, architecture_of, build
from .files import fill, parse, read, write
from .head import DepthHead
from .metrics import DepthRange
from .readout_files import read_readout

KIND = "depth_head"
SUFFIX, READOUT_SUFFIX = ".safetensors", ".pt"
TARGET = "relative inverse depth in [0, 1], near = 1"


def save_depth_head(path: Path, head: DepthHead) -> None:
    """Write a head, whatever it was loaded from, in our format."""
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
    """Read a head; its weights are no inference tensors, so gradients pass it.

    Raises ValueError, in one sentence, for a file that is missing, damaged, or something else.
    """
    if path.suffix == READOUT_SUFFIX:
        return read_readout(path)
    metadata, tensors = read(path, KIND)
    if metadata.get("target") != TARGET:
        raise ValueError(f"{path.name} predicts {metadata.get('target')}, this pack reads {TARGET}.")
    config, distances, training = (
        parse(path, metadata, name) for name in ("config", "depth_range", "training")
    )
    try:
        if metadata["architecture"] not in ARCHITECTURES:
            raise ValueError(
                f"{path.name} has the architecture {metadata['architecture']}, which this pack does not "
                "know: update Inner Guidance."
            )
        with torch.device("meta"):
            network = build(metadata["architecture"], config)
        head = DepthHead(network, metadata["model_family"], DepthRange(**distances), training, path.name)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path.name} is damaged ({error}): fetch or save it again.") from error
    fill(path, network, tensors)
    network.requires_grad_(False).eval()
    return head
