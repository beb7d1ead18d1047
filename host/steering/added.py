"""What the guidances of this pack add in one evaluation: their steps share it.

A latent head reads the result of CFG. It reads it without the guidance of other nodes of the pack, so that
their order makes no difference.
"""

from typing import Any

from torch import Tensor

KEY = "inner_guidance_added"  # in model_options; an object, so that copies of the options share it


class Added:
    """total: of what was added to the result so far. handed: unconditional estimates for the sampler."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.handed: list[Tensor] = []

    @classmethod
    def shared(cls, model_options: dict[str, Any]) -> "Added":
        """That of an evaluation with these options; the first step puts it there."""
        return model_options.setdefault(KEY, cls())

    def to(self, denoised: Tensor, shift: Tensor) -> Tensor:
        """The result with a shift."""
        self.total = self.total + shift
        return denoised + shift

    def without(self, denoised: Tensor) -> Tensor:
        """The result without guidance of the pack."""
        return denoised - self.total
