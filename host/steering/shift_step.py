"""The base of all guided steps with a gradient: they shift the denoised estimate.

The gradient comes from gradient_step.py for heads that read features, and from dag_latent_step.py for heads
that read the estimate itself.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import comfy.model_patcher
from torch import Tensor

from ..sampling.placements import Conditions
from .added import Added

NOT_FINITE = "its gradient is not finite"
NOT_WHOLE = "another node evaluates the latent in parts, or resizes, flips, pads or changes it"


class ShiftStep:
    """The guidance of one evaluation that the sampler asked for, at the latent x.

    previous: the `gradient` of the last step that had one; fresh False uses it and takes none. `reused`:
    whether a step had to use it that should have taken one.
    not_of_sampler: the post-CFG functions that were there before the sampler added its own.
    own_lists: GuidedRun.own_lists.
    """

    def __init__(
        self,
        x: Tensor,
        denoise_mask: Tensor | float,
        previous: Tensor | None,
        fresh: bool,
        not_of_sampler: Collection[Callable[..., Any]],
        own_lists: Mapping[str, Conditions] | None,
    ) -> None:
        self.own_lists = own_lists
        self.not_of_sampler = not_of_sampler
        self.x = x
        self.denoise_mask = denoise_mask
        self.fresh = fresh
        self.previous = previous
        self.reused = False
        self.gradient = None if fresh else previous
        self.problem: str | None = None
        self.overflowed = False
        self.unguided: list[int] = []
        self.shift: Tensor | None = None
        self.added = Added()
        self.late = False  # a function of the sampler was called before there was a shift

    def options(self, model_options: dict[str, Any]) -> dict[str, Any]:
        """A copy of the sampler's model_options in which this evaluation is guided."""
        options = comfy.model_patcher.create_model_options_clone(model_options)
        self.added = Added.shared(options)
        functions = options.get("sampler_post_cfg_function", [])
        options["sampler_post_cfg_function"] = [
            self.post_cfg,
            *(f if f in self.not_of_sampler else partial(self.for_sampler, f) for f in functions),
        ]
        return options

    def estimate(self, args: Mapping[str, Any]) -> Tensor | None:
        """The estimate that the shift is made for, from the arguments of a post-CFG function."""
        raise NotImplementedError

    def estimate_of_guider(self, denoised: Tensor) -> Tensor | None:
        """The same from the result of a guider that combines predictions itself."""
        raise NotImplementedError

    def post_cfg(self, args: dict[str, Any]) -> Tensor:
        """sampler_post_cfg_function; the first."""
        self.find_shift(args["model"], args["sigma"], self.estimate(args))
        if self.shift is None or self.own_lists is not None:
            return args["denoised"]
        return self.added.to(args["denoised"], self.shift)

    def guided(self, denoised: Tensor, model: Any, sigma: Tensor) -> Tensor:
        """The result of a guider that combines predictions itself, with the guidance."""
        self.find_shift(model, sigma, self.estimate_of_guider(denoised))
        if self.shift is None:
            return denoised
        for unconditional in self.added.handed if self.late else []:
            unconditional += self.shift
        return self.added.to(denoised, self.shift)

    def find_shift(self, model: Any, sigma: Tensor, estimate: Tensor | None) -> None:
        """Sets `shift` if there is a gradient and an estimate of the same size."""
        if self.gradient is None or estimate is None or self.gradient.shape != estimate.shape:
            return
        shift = self.denoise_mask * self.shift_of(self.gradient, model, sigma, estimate)
        self.shift = shift.to(estimate.dtype)  # the sampler's, which the rest of the step keeps

    def shift_of(self, gradient: Tensor, model: Any, sigma: Tensor, estimate: Tensor) -> Tensor:
        """The shift of the denoised estimate, from the gradient and an estimate."""
        raise NotImplementedError

    def for_sampler(self, function: Callable[[dict[str, Any]], Tensor], args: dict[str, Any]) -> Tensor:
        """A post-CFG function that the sampler has added: it gets a shifted unconditional estimate.

        CFG++ samplers compute the noise that they add again from this estimate, (x - uncond_denoised) /
        sigma. With the shift in both estimates, a step moves x by 1 - sigma_next / sigma of the shift, as
        Euler's does. With the shift in `denoised` alone, it moves x by the whole shift. Of a guider that
        combines predictions itself, the shift may follow: then it goes into all estimates that were handed on
        from step to step.
        """
        unconditional = args["uncond_denoised"]
        if unconditional is None or (self.shift is None and self.own_lists is None):
            return function(args)
        self.late = self.shift is None
        unconditional = unconditional.clone() if self.shift is None else unconditional + self.shift
        self.added.handed.append(unconditional)
        return function(args | {"uncond_denoised": unconditional})
