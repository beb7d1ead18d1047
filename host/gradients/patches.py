"""Patches of other nodes through which autograd can differentiate, for one forward pass.

IPAdapter, GLIGEN and their like compute with tensors and networks of their own, inside a block of the model.
A node has made those under inference mode, so autograd refuses to keep them for the backward pass. While such
a patch runs, whatever it hands to PyTorch is exchanged for a normal tensor on the same storage.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from .weights import normal


class NormalTensors(TorchFunctionMode):
    """Within it, no function of PyTorch meets an inference tensor. Outside inference mode."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The function, on other tensors."""
        args, kwargs = tree_map_only(Tensor, normal, (args, kwargs or {}))
        return func(*args, **kwargs)


def differentiable_patches(transformer_options: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of transformer_options that hold patches, in new dictionaries and lists."""
    patches, replaced = (transformer_options.get(name, {}) for name in ("patches", "patches_replace"))
    return {
        "patches": {name: [_differentiable(patch) for patch in of_name] for name, of_name in patches.items()},
        "patches_replace": {
            name: {key: _differentiable(patch) for key, patch in of_name.items()}
            for name, of_name in replaced.items()
        },
    }


def _differentiable(patch: Any) -> Any:
    if isinstance(patch, tuple):  # forward_timestep_embed_patch: a type of layer, and what runs in its place
        layer, instead = patch
        return layer, partial(_run, instead)
    return partial(_run, patch)


def _run(patch: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with NormalTensors():
        return patch(*args, **kwargs)
