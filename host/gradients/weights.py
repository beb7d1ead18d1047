"""Makes weights usable by autograd, for one forward and backward pass.

The host makes weights under inference mode, and autograd refuses to keep such tensors for the backward pass.
Nothing is copied here. A weight that stays where it is gets a second tensor on the same storage. A weight
that the host casts, moves or patches whenever it is used (`--lowvram`, async offload, dynamic VRAM, fp8
storage, quantised weights, LoRAs on offloaded weights) lives in a buffer that the next layer overwrites, so
it is not kept: the backward pass asks the host for it again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.ops
import torch
import torch.nn.functional as F
from comfy.quant_ops import QuantizedTensor
from torch import Tensor
from torch.nn.grad import conv2d_input

from .normal_tensors import NormalTensors, normal


def refuse_quantised(model: torch.nn.Module, node: str) -> None:
    """Raise ValueError for quantised weights that the host, or the pack that made them, does not cast."""
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and not is_plain(parameter) and not casts_quantised(module):
                raise ValueError(
                    f"{node} needs gradients, which the quantised weights of this model "
                    f"({type(parameter.data).__name__}) do not give: load the model in fp16, bf16 or fp8 "
                    "(Load Diffusion Model, weight_dtype) from a file that is not quantised."
                )


def is_plain(t: Tensor) -> bool:
    """Whether a weight is a tensor of numbers, not of a class that packs them."""
    return type(t.data) is Tensor


def casts_quantised(module: Any) -> bool:
    """Whether a layer dequantises its weights every time it runs.

    The host's layers do (scaled fp8, NVFP4, int8), and so do layers with their own cast, such as GGUF's.
    """
    if not hasattr(module, "forward_comfy_cast_weights"):
        return False
    return isinstance(module.weight, QuantizedTensor) or (
        casts_at_use(module) and backward_of(module) is recomputed
    )


@contextmanager
def differentiable_weights(model: torch.nn.Module) -> Iterator[None]:
    """Context in which a forward pass of the model can be differentiated with respect to its input.

    No weight requires a gradient. Enter it outside inference mode, and run the backward pass inside it too.
    Afterwards the model is as it was.
    """
    undo: list[tuple[dict[str, Any], str, Any]] = []

    def put(registry: dict[str, Any], name: str, value: Any) -> None:
        undo.append((registry, name, registry.get(name)))
        registry[name] = value

    try:
        for module in model.modules():
            if casts_at_use(module):
                backward = backward_of(module)
                put(vars(module), "forward", partial(_fetch_again, module, module.forward, backward))
                if backward is not recomputed:
                    continue  # autograd never meets its weights
            for name, t in module._parameters.items():
                if t is None or t.is_meta or not is_plain(t):
                    continue
                if t.is_inference() or t.requires_grad:
                    put(module._parameters, name, torch.nn.Parameter(normal(t.detach()), requires_grad=False))
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_inference():
                    put(module._buffers, name, normal(buffer))
        yield
    finally:
        for registry, name, value in reversed(undo):
            if value is None:
                del registry[name]
            else:
                registry[name] = value


def casts_at_use(module: torch.nn.Module) -> bool:
    """Whether the host prepares this layer's weights every time the layer runs."""
    return isinstance(module, comfy.ops.CastWeightBiasOp) and bool(
        module.comfy_cast_weights
        or module.weight_function
        or module.bias_function
        or isinstance(module.weight, QuantizedTensor)
    )


def _fetch_again(
    module: torch.nn.Module,
    forward: Callable[..., Tensor],
    backward: Callable[..., Tensor],
    x: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """The layer's own forward, with a backward pass that keeps no weight."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return forward(x, *args, **kwargs)
    return FetchedAgain.apply(x, module, lambda x: forward(x, *args, **kwargs), backward)


def backward_of(module: Any) -> Callable[..., Tensor]:
    """How a layer that casts at use is differentiated."""
    # Nodes for seamless textures change a convolution's padding through one of these.
    own = {"forward", "forward_comfy_cast_weights", "_conv_forward"} & vars(module).keys()
    if own or module.weight is None or getattr(module, "padding_mode", "zeros") != "zeros":
        return recomputed
    if isinstance(module.weight, QuantizedTensor) and hasattr(module, "in_features"):
        return quantised_linear
    return BACKWARD.get(type(module).forward_comfy_cast_weights, recomputed)


def own(out: Tensor) -> Tensor:
    """An output of an autograd function that the host may write into, which a view does not allow."""
    return out.clone() if out._is_view() else out


class FetchedAgain(torch.autograd.Function):
    """A layer with one input, y = layer(x). Its weights no longer exist in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        module: torch.nn.Module,
        forward: Callable[[Tensor], Tensor],
        backward: Callable[..., Tensor],
    ) -> Tensor:
        """The host's own."""
        ctx.module, ctx.layer, ctx.dx, ctx.shape = module, forward, backward, x.shape
        if backward not in LINEAR_IN_X:
            ctx.save_for_backward(x)
        return own(forward(x.detach()))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        """dL/dx from dL/dy. Raises RuntimeError if the layer has no gradient."""
        (x,) = ctx.saved_tensors or (None,)
        return ctx.dx(ctx.module, dy, ctx.shape, x, ctx.layer), None, None, None


def linear(m: torch.nn.Linear, dy: Tensor, *_: Any) -> Tensor:
    """dL/dy W."""
    with fetched(m, dy) as (weight, _bias):
        return dy @ weight


def quantised_linear(m: Any, dy: Tensor, *_: Any) -> Tensor:
    """dL/dy W with W in full precision. If the host rounds x too, that counts as the identity."""
    with fetched(m, dy) as (weight, _bias):
        dx = dy @ (weight.dequantize() if isinstance(weight, QuantizedTensor) else weight)
    smoothing = getattr(m, "pre_quant_scale", None)
    return dx if smoothing is None else dx * normal(smoothing).to(dx)


def conv2d(m: torch.nn.Conv2d, dy: Tensor, shape: torch.Size, *_: Any) -> Tensor:
    """The transposed convolution of dL/dy with W."""
    with fetched(m, dy) as (weight, _bias):
        return conv2d_input(shape, weight, dy, m.stride, m.padding, m.dilation, m.groups)


def group_norm(m: torch.nn.GroupNorm, dy: Tensor, shape: torch.Size, x: Tensor, *_: Any) -> Tensor:
    """Through the statistics of x, computed again."""
    with fetched(m, x) as (weight, bias), torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(F.group_norm(x, m.num_groups, weight, bias, m.eps), x, dy)[0]


def layer_norm(m: torch.nn.LayerNorm, dy: Tensor, shape: torch.Size, x: Tensor, *_: Any) -> Tensor:
    """Through the statistics of x, computed again."""
    with fetched(m, x) as (weight, bias), torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(F.layer_norm(x, m.normalized_shape, weight, bias, m.eps), x, dy)[0]


def recomputed(
    m: torch.nn.Module, dy: Tensor, shape: torch.Size, x: Tensor, layer: Callable[[Tensor], Tensor]
) -> Tensor:
    """Any other layer: run it again and differentiate it at once, while its weights exist."""
    with torch.enable_grad(), NormalTensors():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(layer(x), x, dy)[0]


# By the forward that the host runs: subclasses in another pack or a quantisation run something else.
OF_HOST = comfy.ops.disable_weight_init
BACKWARD: dict[Callable[..., Any], Callable[..., Tensor]] = {
    OF_HOST.Linear.forward_comfy_cast_weights: linear,
    OF_HOST.Conv2d.forward_comfy_cast_weights: conv2d,
    OF_HOST.GroupNorm.forward_comfy_cast_weights: group_norm,
    OF_HOST.LayerNorm.forward_comfy_cast_weights: layer_norm,
}
LINEAR_IN_X = (linear, quantised_linear, conv2d)


@contextmanager
def fetched(module: torch.nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """A layer's weight and bias as the host prepares them now, in the type and on the device of `like`."""
    weight, bias, stream = comfy.ops.cast_bias_weight(module, like, offloadable=True)
    try:
        yield normal(weight), None if bias is None else normal(bias)
    finally:
        comfy.ops.uncast_bias_weight(module, weight, bias, stream)
