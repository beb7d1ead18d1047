"""Replaces kernels without a backward pass, for one differentiated pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import torch

from ..taps.joint_models import joint_model


@contextmanager
def training_kernels() -> Iterator[None]:
    """Context in which transformers compute rotary embeddings and fused norms as in training.

    Their inference kernels have no backward pass. The host's switch acts on the whole process: a pass in
    another thread gives the same result, a little slower.
    """
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def refuse_without_training_kernels(diffusion_model: torch.nn.Module, node: str, advice: str) -> None:
    """Raise ValueError, with the advice, for a transformer if this host cannot replace its kernels."""
    joint = joint_model(diffusion_model)
    if joint is None:
        return
    if not hasattr(comfy.model_management, "in_training"):
        raise ValueError(
            f"{node} needs gradients, which this version of ComfyUI does not give for {joint.name}: {advice}."
        )
