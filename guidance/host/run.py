"""What belongs to one sampling run: where its own wrappers stand, and where in the schedule a step is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
from torch import Tensor

from .recording import WRAPPER_KEY


@contextmanager
def for_this_run(guider: Any, wrapper_type: str, wrapper: Callable[..., Any]) -> Iterator[None]:
    """Within an OUTER_SAMPLE wrapper: a wrapper that this run has, and no other run of the same model.

    The guider's options are a copy with the wrapper until the run ends, also by an error or an interrupt. So
    what the wrapper holds lives no longer than the run.
    """
    before = guider.model_options
    guider.model_options = comfy.model_patcher.create_model_options_clone(before)
    comfy.patcher_extension.add_wrapper_with_key(
        wrapper_type, WRAPPER_KEY, wrapper, guider.model_options, is_model_options=True
    )
    try:
        yield
    finally:
        guider.model_options = before


def denoise_mask_at(
    guider: Any, denoise_mask: Tensor | None, timestep: Tensor, model_options: dict[str, Any]
) -> Tensor | float:
    """1 where the sampler keeps what the model predicts, 0 where it pastes the given latent back."""
    if denoise_mask is None:
        return 1.0
    of_sigma = model_options.get("denoise_mask_function")
    if of_sigma is None:
        return denoise_mask
    sigmas = model_options["transformer_options"]["sample_sigmas"]
    return of_sigma(timestep, denoise_mask, extra_options={"model": guider, "sigmas": sigmas})


@dataclass(frozen=True)
class SigmaRange:
    """The part of the schedule between two percentages of it, both ends included; sigma falls from start."""

    start: float
    end: float

    @classmethod
    def from_percent(cls, model_sampling: Any, start_percent: float, end_percent: float) -> "SigmaRange":
        """Percentages from 0 (the first step) to 1 (the last)."""
        return cls(
            model_sampling.percent_to_sigma(start_percent), model_sampling.percent_to_sigma(end_percent)
        )

    def __contains__(self, sigma: float) -> bool:
        return self.end <= sigma <= self.start


def step_of(sigma: float, sample_sigmas: Tensor) -> int:
    """The step of the schedule that an evaluation at sigma belongs to, from 0.

    Samplers of second order evaluate between two sigmas of the schedule; that belongs to the step that starts
    at the higher one. A sigma above the first is step 0.
    """
    tolerance = 1e-4 * sigma
    return max(int((sample_sigmas >= sigma - tolerance).sum()) - 1, 0)


def is_nth_step(sigma: float, sample_sigmas: Tensor, within: SigmaRange, n: int) -> bool:
    """Whether the step of sigma is the first of those in the range, or the n-th, 2n-th, ... after it."""
    first = next((i for i, s in enumerate(sample_sigmas.tolist()) if s in within), 0)
    return (step_of(sigma, sample_sigmas) - first) % n == 0
