"""Kernels with a backward pass, for transformers whose own cannot be replaced by transformer_options.

Cosmos-Predict2, JoyImage and Ernie rotate, some with the norm, in an operator of comfy_kitchen that has no
gradient, in training too; its plain PyTorch form takes its place. Ernie, PixArt and Hunyuan-DiT call
attention without transformer_options. All of this acts in one thread alone. On a GPU the backward pass has a
thread of its own, so a block that runs again there enters the context anew (checkpointing.py).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..taps.joint_models import joint_model
from ..taps.overridden_attention import ATTENTION, overridden
from .attention import DifferentiableAttention

try:
    from comfy_kitchen.backends import eager
except ImportError:  # hosts without it have no such operators
    eager = None

OPERATORS = ("apply_rope", "apply_rope_split_half", "rms_rope", "rms_rope_split_half")
PLAIN: dict[Any, Callable[..., Any]] = {
    getattr(torch.ops.comfy_kitchen, name): getattr(eager, name)
    for name in OPERATORS
    if hasattr(eager, name) and hasattr(torch.ops.comfy_kitchen, name)  # older versions lack some
}


class PlainRotation(TorchFunctionMode):
    """Computes the operators of PLAIN in plain PyTorch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function, or its plain form."""
        return PLAIN.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def plain_kernels(diffusion_model: torch.nn.Module, part: torch.nn.Module) -> Iterator[None]:
    """Context in which a part of a model, such as a block, computes with differentiable kernels."""
    joint = joint_model(diffusion_model)
    with ExitStack() as stack:
        if joint is not None and joint.fused:
            stack.enter_context(PlainRotation())
        if joint is not None and not joint.overridable:
            for module in filter(calls_attention, part.modules()):
                stack.enter_context(overridden(module, DifferentiableAttention(None)))
        yield


def calls_attention(module: torch.nn.Module) -> bool:
    """Whether the forward of a module's class calls the host's attention."""
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and ATTENTION in code.co_names
