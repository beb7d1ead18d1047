"""One step of Depth-Aware Guidance by a head that reads features."""

from typing import Any

from .dag_gradient import DepthGradient
from .dag_step import DepthAwareStep
from .gradient_pass import GradientReader
from .gradient_step import GradientStep


class DepthFeatureStep(DepthAwareStep, GradientStep):
    """loss_scale: factor of the losses in the backward pass. further: arguments of both bases."""

    def __init__(self, *, loss_scale: float, **further: Any) -> None:
        super().__init__(**further)
        self.loss_scale = loss_scale

    def reader(self) -> DepthGradient:
        """The gradient of the losses."""
        return DepthGradient(self.settings, self.networks, self.seeded(), self.loss_scale)

    def read(self, reader: GradientReader) -> None:
        """Keeps the depth too."""
        super().read(reader)
        if isinstance(reader, DepthGradient):
            self.depth = reader.depth
