"""Whether the model gets the latent of a pass as the pass has it.

Within a pass, DIFFUSION_MODEL wrappers of other nodes may crop, resize or change the latent. What is read of
the model is then not where it seems to be.
"""

from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..keys import INNERMOST_KEY, WRAPPER_KEY
from .crops import same_numbers


class InnerLatent:
    """Compares, for one pass, the latent that goes into the wrappers of other nodes with what comes out."""

    def __init__(self) -> None:
        self.latent: Tensor | None = None
        self.changed = False

    def options(self, transformer_options: dict[str, Any]) -> dict[str, Any]:
        """A copy of the pass's transformer_options with this around the wrappers; the same without any."""
        wrappers = transformer_options.get("wrappers", {})
        of_model = wrappers.get(WrappersMP.DIFFUSION_MODEL, {})
        if not of_model:
            return transformer_options
        around = {WRAPPER_KEY: [self.outermost, *of_model.get(WRAPPER_KEY, [])]} | {
            key: of_key for key, of_key in of_model.items() if key not in (WRAPPER_KEY, INNERMOST_KEY)
        }
        around[INNERMOST_KEY] = [*of_model.get(INNERMOST_KEY, []), self.innermost]
        return transformer_options | {"wrappers": wrappers | {WrappersMP.DIFFUSION_MODEL: around}}

    def outermost(self, executor: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """DIFFUSION_MODEL wrapper, the first."""
        self.latent = x.detach().clone()
        return executor(x, *args, **kwargs)

    def innermost(self, executor: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """DIFFUSION_MODEL wrapper, the last."""
        if self.latent is None or x.shape != self.latent.shape or not same_numbers(x, self.latent):
            self.changed = True
        return executor(x, *args, **kwargs)
