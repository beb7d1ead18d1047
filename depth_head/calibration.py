"""How a head reads real images: from this a guidance knows the losses at which there is nothing to mend.

A real image has some loss, too: a head's branches differ, and its maps are not as sharp as those a prior was
trained on. What losses a prior gives the head's maps is known only where both meet, so a head carries maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossLevels:
    """Mean and standard deviation of a loss over real images, at each of the times, which rise."""

    times: tuple[float, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    @classmethod
    def of(cls, times: Sequence[float], losses: Tensor) -> "LossLevels":
        """From the losses (n, len(times)) of n images; n is 2 or more."""
        losses = losses.double()
        return cls(tuple(times), tuple(losses.mean(0).tolist()), tuple(losses.std(0).tolist()))

    def at(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation at times (B,): linear between two of `times`, constant outside of them."""
        times, means, deviations = (
            time.new_tensor(values) for values in (self.times, self.means, self.deviations)
        )
        right = torch.searchsorted(times, time.contiguous()).clamp(max=len(times) - 1)
        left = (right - 1).clamp(min=0)
        share = ((time - times[left]) / (times[right] - times[left])).nan_to_num(0.0).clamp(0, 1)
        return means[left].lerp(means[right], share), deviations[left].lerp(deviations[right], share)


@dataclass(frozen=True, eq=False)
class Calibration:
    """times: noise levels, rising. depth (n, len(times), h, w), float16 on the CPU: what the strong branch
    reads from n real images at these times. consistency: levels of L_dc; None without a weak branch.
    """

    times: tuple[float, ...]
    depth: Tensor
    consistency: LossLevels | None
