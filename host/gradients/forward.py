"""Gradients of a model's features with respect to its latent, inside the host's own forward pass.

Nodes run under inference mode, samplers run under no_grad, and weights are inference tensors. So an
APPLY_MODEL wrapper runs the pass outside inference mode, and makes weights, attention, kernels and patches of
other nodes differentiable (weights.py, attention.py, kernels.py, patches.py). Blocks of transformers may
write in place (writes.py). ControlNets have already run. What they, IPAdapters and LoRAs add is constant in
the graph.

Only what the backward pass needs is kept:
- If a batch has a conditional and an unconditional half, one half is differentiated. The other runs in a
  separate pass, as the host would run it. If code of other nodes may make one half depend on the other
  (rows.py), both are differentiated together.
- After the last layer that a loss depends on, the forward pass continues without a graph.
- With `checkpointing`, the backward pass computes blocks again (checkpointing.py). Not where they would then
  compute something else (fills_cache).
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..keys import ModelExecutor
from ..taps.blocks import FeatureLayer
from ..taps.feature_tap import FeatureTap
from ..taps.joint_models import joint_model
from ..taps.uncompiled import uncompiled
from .attention import DifferentiableAttention
from .checkpointing import checkpointed
from .kernels import training_kernels
from .normal_tensors import NormalTensors, normal
from .patches import differentiable_forwards, differentiable_patches, fills_cache
from .plain_kernels import plain_kernels
from .rows import foreign_wrappers
from .weights import differentiable_weights
from .writes import writes_allowed

BEFORE_SKIP, AFTER_SKIP = "input_block_patch", "input_block_patch_after_skip"
Features = dict[FeatureLayer, Tensor]
# From features to tensors that depend on them, and their cotangents: the gradient of a loss there.
Products = Callable[[Features], tuple[Sequence[Tensor], Sequence[Tensor]]]
# What a differentiated pass changes for its length, weights, forwards and kernels, all runs share.
ONE_AT_A_TIME = threading.RLock()


def evaluate_with_gradient(
    executor: ModelExecutor,
    rows: Sequence[int],
    layers: Sequence[FeatureLayer],
    products: Sequence[Products],
    inputs: Mapping[str, Any],
    *,
    apart: bool = True,
    constant: Collection[FeatureLayer] = (),
    checkpointing: bool = False,
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """One forward pass inside an APPLY_MODEL wrapper: its output, and gradients of some of its rows.

    executor: the wrapper's. inputs: all its arguments by name, transformer_options with the labels
    (`cond_or_uncond`, `uuids`) of as many chunks as the batch has; rows: those of one chunk. Each of
    `products` gets the features in `layers` of these rows, and returns outputs y_i and cotangents c_i. apart:
    whether the other rows may have a pass of their own (rows_are_independent). constant: layers whose
    features no y_i depends on; not all.

    Returns D(x), equal to the host's up to rounding, and for each of `products` sum_i c_i dy_i/dx,
    (len(rows), C, h, w). x is the latent, the same for every chunk. Where all c are 0 there is no backward
    pass. The gradient is None if the layers were not computed because a cache of another node skipped them.
    """
    count = inputs["x"].shape[0]
    if len(rows) == count or not apart:
        return differentiate(executor, rows, layers, constant, products, inputs, checkpointing)
    others = [i for i in range(count) if i not in rows]
    with uncompiled():  # its options may be those of the readers
        out_of_others = call(executor, of_rows(inputs, others))
    out_of_rows, gradients = differentiate(
        executor, range(len(rows)), layers, constant, products, of_rows(inputs, rows), checkpointing
    )
    out = out_of_others.new_empty(count, *out_of_others.shape[1:])
    out[others], out[list(rows)] = out_of_others, out_of_rows.to(out)
    return out, gradients


ARGUMENTS = ("x", "t", "c_concat", "c_crossattn", "control", "transformer_options")


def call(executor: ModelExecutor, inputs: Mapping[str, Any]) -> Tensor:
    """The pass with these inputs, handed over as the host does: in the order of BaseModel.apply_model."""
    further = {name: value for name, value in inputs.items() if name not in ARGUMENTS}
    return executor(*(inputs[name] for name in ARGUMENTS), **further)


def of_rows(inputs: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The arguments of a pass for some rows of its batch: whole chunks, in order."""
    count = inputs["x"].shape[0]
    options = dict(inputs["transformer_options"])
    size = count // len(options["cond_or_uncond"])
    chunks = [row // size for row in rows[::size]]
    for name in ("cond_or_uncond", "uuids"):
        options[name] = [options[name][chunk] for chunk in chunks]

    def select(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[list(rows)] if value.ndim and value.shape[0] == count else value
        if isinstance(value, dict):
            return {key: select(v) for key, v in value.items()}
        if isinstance(value, list):
            return [select(v) for v in value]
        return value

    rest = {name: select(v) for name, v in inputs.items() if name != "transformer_options"}
    return rest | {"transformer_options": options}


def differentiate(
    executor: ModelExecutor,
    rows: Sequence[int],
    layers: Sequence[FeatureLayer],
    constant: Collection[FeatureLayer],
    products: Sequence[Products],
    inputs: Mapping[str, Any],
    checkpointing: bool,
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """evaluate_with_gradient in one pass."""
    model = executor.class_obj
    is_transformer = joint_model(model.diffusion_model) is not None
    checkpointing = checkpointing and not fills_cache(inputs)
    with (
        ONE_AT_A_TIME,
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        differentiable_forwards(model),
        differentiable_weights(model),
        uncompiled(),
        training_kernels() if is_transformer else nullcontext(),
        plain_kernels(model.diffusion_model, model.diffusion_model),
        checkpointed(model.diffusion_model) if checkpointing else nullcontext(),
    ):
        inputs = {name: _normal(value) for name, value in inputs.items()}
        # A sampler may compute in half precision, in which a gradient and its square are soon 0.
        precision = torch.promote_types(inputs["x"].dtype, torch.float32)
        leaf = inputs["x"].detach().to(precision, copy=True).requires_grad_()
        # Wrappers of other nodes may write into x, which a leaf does not allow.
        inputs["x"] = leaf.clone()
        options = dict(inputs["transformer_options"])
        options = inputs["transformer_options"] = options | differentiable_patches(options)
        options["optimized_attention_override"] = DifferentiableAttention(
            options.get("optimized_attention_override")
        )
        if inputs["control"] is not None or AFTER_SKIP in options["patches"]:
            options["patches"] = with_skips_apart(options["patches"])
        # Wrappers of other nodes (EasyCache) keep tensors of passes under inference mode.
        wrapped = NormalTensors() if any(foreign_wrappers(options)) else None
        if wrapped:
            inputs["transformer_options"] = wrapped.in_wrappers(options)
        features: Features = {}
        differentiated = set(layers) - set(constant)

        def read(layer: FeatureLayer, feature: Tensor) -> None:
            features[layer] = feature.narrow(0, rows[0], len(rows)).clone()
            if differentiated <= features.keys():
                torch.set_grad_enabled(False)

        with (
            FeatureTap(layers, read).reading(model.diffusion_model, leaf, inputs["c_crossattn"]),
            writes_allowed() if is_transformer else nullcontext(),
            wrapped or nullcontext(),
        ):
            out = call(executor, inputs).detach()
        if len(features) < len(layers):
            return out, [None] * len(products)
        gradients = []
        for number, of_loss in enumerate(products, 1):
            with torch.enable_grad():
                outputs, cotangents = of_loss(features)
                gradient = torch.zeros_like(leaf)
                if any(cotangent.any() for cotangent in cotangents):
                    (gradient,) = torch.autograd.grad(
                        outputs, leaf, cotangents, retain_graph=number < len(products)
                    )
            gradients.append(gradient.unflatten(0, (-1, len(rows))).sum(0))
    return out, gradients


def with_skips_apart(patches: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Patches of a UNet, with a separate tensor for each skip connection.

    The host adds a ControlNet's output to them in place, and patches after the skip may write into them. By
    then the next block, or a patch before the skip, has kept them for its backward pass.
    """
    before, after = patches.get(BEFORE_SKIP, []), patches.get(AFTER_SKIP, [])
    return {**patches, BEFORE_SKIP: [*before, _copy] if before else [], AFTER_SKIP: [*after, _copy]}


def _copy(h: Tensor, transformer_options: dict[str, Any]) -> Tensor:
    return h.clone()


def _normal(value: Any) -> Any:
    """The value without inference tensors, in new lists: the host empties those of a ControlNet's outputs."""
    if isinstance(value, Tensor):
        return normal(value)
    if isinstance(value, list):
        return [_normal(v) for v in value]
    if isinstance(value, dict) and "cond_or_uncond" not in value:
        return {key: _normal(v) for key, v in value.items()}
    return value
