"""The host in float64, for central differences: in float32, rounding blurs them to a percent."""

import sys
from contextlib import contextmanager

import comfy.model_management
import pytest
import torch
from comfy_kitchen.registry import registry
from torch.overrides import TorchFunctionMode

ROTATIONS = ("apply_rope", "apply_rope_split_half", "rms_rope", "rms_rope_split_half")
WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}


class HostNamesFloat32(TorchFunctionMode):
    """Where the host's code names float32 (rotary tables, embeddings of time, norms), it gets float64.

    Code of the pack gets what it names: a cast to float32 there would show in the differences.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        names = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)]
        if (func is torch.Tensor.float or WIDER.keys() & names) and caller().startswith("comfy"):
            func = torch.Tensor.double if func is torch.Tensor.float else func
            args = [WIDER.get(a, a) if isinstance(a, torch.dtype) else a for a in args]
            kwargs = {k: WIDER.get(a, a) if isinstance(a, torch.dtype) else a for k, a in kwargs.items()}
        return func(*args, **kwargs)


def caller():
    """The module that has called a function of PyTorch, also through a mode of the pack."""
    frame = sys._getframe(2)
    while frame.f_globals["__name__"].startswith("torch") or frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    return frame.f_globals["__name__"]


@contextmanager
def in_float64():
    """Context in which models of the host's classes are made, and compute, in float64.

    As in a training of the host: its kernels for inference know no float64. Those that stay, in plain
    PyTorch on the CPU, are allowed it.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.MonkeyPatch.context() as patch, HostNamesFloat32():
            patch.setattr(comfy.model_management, "in_training", True)
            for name in ROTATIONS:
                patch.delitem(registry._constraints, ("eager", name))
            yield
    finally:
        torch.set_default_dtype(default)
