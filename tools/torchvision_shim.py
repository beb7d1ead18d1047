"""Lets `import torchvision` succeed where its native library does not fit this build of torch.

Next to a CPU build of torch, the torchvision that a package registry hands out is a CUDA build. Its library
does not load, and its Python part then stops at two operators which it expects that library to have defined.
The host imports torchvision at start but needs only its Python part, so defining the two is enough.
"""

import importlib
import sys

import torch


def import_torchvision() -> None:
    """Import torchvision, defining the operators it asks for only when the plain import fails."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        importlib.import_module("torchvision")
