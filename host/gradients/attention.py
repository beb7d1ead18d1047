"""Differentiable attention, for one forward pass.

Some kernels have no backward pass. Sage attention silently returns a tensor that is detached from the graph.
Flash attention, which the host calls through a custom operator, fails in the backward pass. So the
differentiated pass uses scaled dot-product attention in place of the host's kernel. Another node's override
stays, because it may change the result and not only the speed. Its own backward pass is used if it has one.
If it has none, the gradient is that of plain attention on the same queries, keys and values.
"""

from collections.abc import Callable
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from .normal_tensors import normal
from .patches import run_foreign


class DifferentiableAttention:
    """optimized_attention_override for one forward pass; wraps an override that is already set."""

    def __init__(self, override: Callable[..., Tensor] | None) -> None:
        self.override = override

    def __call__(self, attention: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The attention, with a gradient if one is needed; otherwise unchanged."""
        if not torch.is_grad_enabled():
            if self.override is None:
                return attention(*args, **kwargs)
            return self.override(attention, *args, **kwargs)
        # Keys and masks that another node has prepared may be inference tensors.
        q, k, v, *rest = (normal(a) if isinstance(a, Tensor) else a for a in args)
        kwargs = {name: normal(a) if isinstance(a, Tensor) else a for name, a in kwargs.items()}
        override = self.override
        if override is None:
            return attention_pytorch(q, k, v, *rest, **kwargs)
        return OwnOrPlainBackward.apply(
            q,
            k,
            v,
            lambda q, k, v: run_foreign(override, attention_pytorch, q, k, v, *rest, **kwargs),
            lambda q, k, v: attention_pytorch(q, k, v, *rest, **kwargs),
        )


class OwnOrPlainBackward(torch.autograd.Function):
    """compute(q, k, v) with its own gradient if there is one, else with that of plain(q, k, v)."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        compute: Callable[..., Tensor],
        plain: Callable[..., Tensor],
    ) -> Tensor:
        """The result of `compute`."""
        ctx.inputs = [
            t.detach().requires_grad_(needed)
            for t, needed in zip((q, k, v), ctx.needs_input_grad, strict=False)
        ]
        with torch.enable_grad():
            ctx.out = compute(*ctx.inputs)
        ctx.plain = plain
        return ctx.out.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """A kernel without a backward pass raises RuntimeError here, or has already detached its output."""
        wanted = [t for t in ctx.inputs if t.requires_grad]
        found = None
        if ctx.out.requires_grad:
            try:
                found = torch.autograd.grad(ctx.out, wanted, grad)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                found = None
        if found is None:
            with torch.enable_grad():
                found = torch.autograd.grad(ctx.plain(*ctx.inputs), wanted, grad)
        gradients = iter(found)
        return (*(next(gradients) if t.requires_grad else None for t in ctx.inputs), None, None)
