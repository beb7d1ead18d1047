"""Checkpointing: a block keeps only its inputs, and runs a second time in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torch.utils.checkpoint import checkpoint

from ..taps.joint_models import joint_model
from .plain_kernels import plain_kernels
from .weights import own
from .writes import writes_allowed

Context = Callable[[], AbstractContextManager[None]]


@contextmanager
def checkpointed(diffusion_model: torch.nn.Module) -> Iterator[None]:
    """Context in which every block of a model is checkpointed.

    UNets use PyTorch's checkpoint, because a head may read inside a block. For blocks that write into their
    input, as Flux's do, it would silently give wrong gradients.
    """
    blocks: list[torch.nn.Module]
    if joint_model(diffusion_model) is None:
        blocks = [m for m in diffusion_model.modules() if isinstance(m, ResBlock | SpatialTransformer)]
        run = _run_unet_block
    else:
        model = _as_written(diffusion_model)
        stacks = [m for m in model.children() if isinstance(m, torch.nn.ModuleList)]
        blocks = [_as_written(block) for stack in stacks for block in stack]
        run = _run_transformer_block
    with ExitStack() as undo:
        for block in blocks:
            undo.callback(_restore, block, vars(block).get("forward"))
            kernels = partial(plain_kernels, diffusion_model, block)
            vars(block)["forward"] = partial(run, block.forward, kernels)
        yield


def _as_written(module: torch.nn.Module) -> torch.nn.Module:
    """The module that torch.compile has wrapped."""
    return getattr(module, "_orig_mod", module)


def _restore(block: torch.nn.Module, forward: Callable[..., Any] | None) -> None:
    if forward is None:
        del vars(block)["forward"]
    else:
        vars(block)["forward"] = forward


def _run_unet_block(forward: Callable[..., Any], _: Context, /, *args: Any, **kwargs: Any) -> Any:
    """One block. Its second run gets the same transformer_options as the first."""
    copied = [dict(a) if isinstance(a, dict) else a for a in args]
    kwargs = {name: dict(a) if isinstance(a, dict) else a for name, a in kwargs.items()}
    return checkpoint(forward, *copied, use_reentrant=False, **kwargs)


def _run_transformer_block(
    forward: Callable[..., Any], kernels: Context, /, *args: Any, **kwargs: Any
) -> Any:
    """One block. Both runs get copies of its tensors, the same transformer_options, and the kernels."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    values, spec = tree_flatten(
        (args, kwargs), is_leaf=lambda value: isinstance(value, dict) and value is not kwargs
    )
    places = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
    tensors = [values[i] for i in places]
    values = [None if isinstance(v, Tensor) else dict(v) if isinstance(v, dict) else v for v in values]

    def block(given: list[Tensor]) -> Any:
        filled = list(values)
        for i, tensor in zip(places, given, strict=True):
            filled[i] = tensor.clone()
        args, kwargs = tree_unflatten(filled, spec)
        with kernels():
            return forward(*args, **kwargs)

    return RunAgain.apply(block, *tensors)


class RunAgain(torch.autograd.Function):
    """block(tensors), one tensor or several. Only the arguments are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, block: Callable[[list[Tensor]], Any], *tensors: Tensor) -> Any:
        """The block without a graph."""
        ctx.block = block
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return tree_map_only(Tensor, own, block(list(tensors)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """The block with a graph, differentiated at once."""
        given = [
            t.detach().requires_grad_(needed)
            for t, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        ]
        with torch.enable_grad(), writes_allowed():
            out = ctx.block(given)
        outputs = out if isinstance(out, tuple) else (out,)
        pairs = [
            (o, g)
            for o, g in zip(outputs, gradients, strict=True)
            if g is not None and o is not None and o.requires_grad
        ]
        wanted = [t for t in given if t.requires_grad]
        found = iter(
            torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
        )
        return None, *(next(found) if t.requires_grad else None for t in given)
