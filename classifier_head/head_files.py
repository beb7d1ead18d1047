"""A classifier head's file."""

import json
from pathlib import Path

import torch

from ..depth_head.files import damaged, fill, is_name, legible, name_of, parse, read, write
from .head import ClassifierHead, folded
from .network import ClassifierNetwork

KIND = "classifier_head"
SUFFIX = ".safetensors"


def save_classifier_head(path: Path, head: ClassifierHead) -> None:
    """Write a head."""
    metadata = {
        "config": json.dumps(head.network.config),
        "model_family": head.model_family,
        "classes": json.dumps(list(head.classes)),
        "training": json.dumps(dict(head.training)),
    }
    write(path, KIND, metadata, head.network.state_dict())


@torch.inference_mode(False)
def load_classifier_head(path: Path) -> ClassifierHead:
    """Read a head. Its weights are not inference tensors, so gradients can pass through it.

    Raises ValueError, in one sentence, if the file is missing, damaged or not a classifier head.
    """
    metadata, tensors = read(path, KIND)
    family = name_of(path, metadata, "model_family")
    config, training = (parse(path, metadata, entry, dict) for entry in ("config", "training"))
    classes = parse(path, metadata, "classes", list)
    if not all(isinstance(name, str) and is_name(name) for name in classes):
        raise damaged(path, "its classes are not short names")
    if len({folded(name) for name in classes}) < len(classes):
        raise damaged(path, "two of its classes have the same name")
    try:
        with torch.device("meta"):
            network = ClassifierNetwork(**config)
    except (TypeError, ValueError) as error:
        raise damaged(path, legible(error, 200)) from error
    if network.classes != len(classes):
        raise damaged(path, f"it names {len(classes)} classes and has {network.classes}")
    fill(path, network, tensors)
    network.requires_grad_(False).eval()
    return ClassifierHead(network, family, tuple(classes), training, legible(path.name))
