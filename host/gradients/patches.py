"""Makes code of other nodes differentiable, for one forward pass.

IPAdapter, GLIGEN and similar nodes compute with their own tensors and networks inside a block of the model. A
LoRA in bypass mode replaces the forward of a layer. The nodes made those tensors under inference mode, so
autograd refuses to keep them for the backward pass. While such code runs, every inference tensor that it
passes to PyTorch is replaced by a normal tensor on the same storage.

Such code may also write into tensors that the backward pass needs, as FreeU and NAG do. So it gets copies of
its arguments, and its own tensors are copied before it overwrites them. What it writes without returning it
is written back.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .normal_tensors import NormalTensors
from .writes import writes_allowed


def differentiable_patches(transformer_options: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of transformer_options that hold patches, in new dictionaries and lists."""
    patches, replaced = (transformer_options.get(name, {}) for name in ("patches", "patches_replace"))
    return {
        "patches": {
            name: [
                _differentiable(patch, on_skip=name == "input_block_patch_after_skip") for patch in of_name
            ]
            for name, of_name in patches.items()
        },
        "patches_replace": {
            name: {key: _differentiable(patch) for key, patch in of_name.items()}
            for name, of_name in replaced.items()
        },
    }


def fills_cache(inputs: Mapping[str, Any]) -> bool:
    """Whether in this pass FluxKVCache keeps the keys of reference images, which it uses from then on.

    A block that runs again in the backward pass would find them twice. inputs: the arguments of the pass.
    """
    patches = inputs["transformer_options"].get("patches", {}).get("attn1_patch", [])
    empty = any(type(patch).__name__ == "KV_Attn_Input" and not patch.cache for patch in patches)
    return empty and bool(inputs.get("ref_latents"))


def _differentiable(patch: Any, on_skip: bool = False) -> Any:
    if isinstance(patch, tuple):  # forward_timestep_embed_patch: a type of layer, and what runs in its place
        layer, instead = patch
        return layer, partial(run_foreign, instead)
    return partial(_run_on_skip if on_skip else _run_patch, patch)


@contextmanager
def differentiable_forwards(model: torch.nn.Module) -> Iterator[None]:
    """Context in which forwards of layers that other nodes have replaced can be differentiated.

    Run the backward pass inside it too, because that may run layers again.
    """
    replaced = {module: vars(module)["forward"] for module in model.modules() if has_foreign_forward(module)}
    try:
        for module, forward in replaced.items():
            module.forward = partial(run_foreign, forward)
        yield
    finally:
        for module, forward in replaced.items():
            module.forward = forward


def has_foreign_forward(module: torch.nn.Module) -> bool:
    """Whether another node has replaced this module's forward.

    A compiled module has one of PyTorch's, and a node may have put the module's own back into the instance.
    """
    forward = vars(module).get("forward")
    if forward is None or hasattr(module, "_orig_mod"):
        return False
    return getattr(forward, "__func__", None) is not type(module).forward


def run_foreign(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result of another node's code, with a graph through it if a gradient is needed."""
    return _run(function, *_own_copies(args, kwargs))


def _run_patch(patch: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A patch. Those of transformers get a dictionary.

    ZImageFunControlnet writes into a tensor of it and does not return it: that belongs into the model's own.
    """
    copied, copied_kwargs = _own_copies(args, kwargs)
    given = [(name, t, own) for a, b in zip(args, copied, strict=True) for name, t, own in _copied(a, b)]
    written = [own._version for _, _, own in given]
    out = _run(patch, copied, copied_kwargs)
    for (name, of_model, own), version in zip(given, written, strict=True):
        if own._version != version and not (isinstance(out, dict) and name in out):
            of_model.copy_(own)
    return out


def _copied(given: Any, copies: Any) -> list[tuple[str, Tensor, Tensor]]:
    """The tensors of a dictionary that were copied: name, tensor, copy."""
    if not isinstance(given, dict):
        return []
    pairs = ((name, t, copies[name]) for name, t in given.items() if isinstance(t, Tensor))
    return [(name, t, own) for name, t, own in pairs if own is not t]


def _run_on_skip(patch: Callable[..., Tensor], h: Tensor, transformer_options: dict[str, Any]) -> Tensor:
    """A patch after the skip. h is the skip connection, too: what the patch writes into it belongs there."""
    copy = h.clone()
    written = copy._version
    out = _run(patch, (copy, transformer_options), {})
    if copy._version != written:
        h.copy_(copy)
    return h if out is copy else out


def _run(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with NormalTensors(), writes_allowed():
        return function(*args, **kwargs)


def _own_copies(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, with a copy of each tensor that is in the graph.

    Patches of a block may share state through the options, so those stay the same dictionary.
    """
    copies: dict[int, Tensor] = {}

    def own(value: Any) -> Any:
        if isinstance(value, Tensor) and value.requires_grad:
            if id(value) not in copies:
                copies[id(value)] = value.clone()
            return copies[id(value)]
        if isinstance(value, dict) and "cond_or_uncond" not in value:
            return {key: own(v) if isinstance(v, Tensor) else v for key, v in value.items()}
        return value

    return tuple(own(a) for a in args), {name: own(a) for name, a in kwargs.items()}
