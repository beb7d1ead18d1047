"""How far the run of a workflow is from the CPU's."""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from inner_guidance.tests.gpu.tolerances import Tolerance
from inner_guidance.tools.template_runs import TemplateRun


@dataclass(frozen=True)
class Deviation:
    """The largest deviations of a run, in the measures of Tolerance; None where there is nothing."""

    plain: float | None
    guidance: float | None
    picture: float | None

    def exceeds(self, tolerance: Tolerance) -> list[str]:
        """What is too far."""
        return [
            name
            for name in ("plain", "guidance", "picture")
            if getattr(self, name) is not None and not getattr(self, name) <= getattr(tolerance, name)
        ]

    def __str__(self) -> str:
        figures = {"plain": self.plain, "guidance": self.guidance, "pictures": self.picture}
        return ", ".join(f"{name} {value:.2g}" for name, value in figures.items() if value is not None)


def deviation(found: TemplateRun, reference: TemplateRun) -> Deviation:
    """The deviation of one run from another of the same workflow."""
    plain, guidance = [], []
    for sampler, twin, guided in reference.twins:
        plain.append(relative(found.latents[twin], reference.latents[twin]))
        if guided:
            shift, expected = (run.latents[sampler] - run.latents[twin] for run in (found, reference))
            guidance.append(relative(shift, expected))
    pictures = [
        difference(one, other)
        for name, expected in reference.pictures.items()
        for one, other in zip(found.pictures[name], expected, strict=True)
    ]
    return Deviation(*(max(values, default=None) for values in (plain, guidance, pictures)))


def relative(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference divided by the norm of what is expected."""
    return float((found - expected).norm() / expected.norm())


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean of the absolute difference of two pictures in [0, 1]; infinite if their sizes differ."""
    if one.size != other.size:
        return float("inf")
    a, b = (np.asarray(picture.convert("RGB"), dtype=np.float32) / 255 for picture in (one, other))
    return float(np.abs(a - b).mean())
