"""Normal tensors in place of inference tensors, which autograd refuses to keep for the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from ..keys import INNERMOST_KEY


def normal(t: Tensor) -> Tensor:
    """A normal tensor on the storage of an inference tensor; any other tensor as it is.

    Tensor subclasses, such as quantised weights, are left alone. Call it outside inference mode.
    """
    if not t.is_inference() or type(t) not in (Tensor, Parameter):
        return t
    alias = torch.empty(0, dtype=t.dtype, device=t.device)
    return alias.set_(t.untyped_storage(), t.storage_offset(), t.size(), t.stride())


class NormalTensors(TorchFunctionMode):
    """Mode in which PyTorch's functions get no inference tensors. Enter it outside inference mode."""

    def __init__(self) -> None:
        super().__init__()
        self.active = True

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the function with normal tensors."""
        if self.active:
            args, kwargs = tree_map_only(Tensor, normal, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def in_wrappers(self, transformer_options: dict[str, Any]) -> dict[str, Any]:
        """A copy of a pass's transformer_options: the model, inside all wrappers, runs without the mode."""
        wrappers = transformer_options.get("wrappers", {})
        of_model = dict(wrappers.get(WrappersMP.DIFFUSION_MODEL, {}))
        of_model[INNERMOST_KEY] = [*of_model.pop(INNERMOST_KEY, []), self._pause]
        return transformer_options | {"wrappers": wrappers | {WrappersMP.DIFFUSION_MODEL: of_model}}

    def _pause(self, executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """DIFFUSION_MODEL wrapper, the last."""
        self.active = False
        try:
            return executor(*args, **kwargs)
        finally:
            self.active = True
