"""One step of a guidance that reads features, inside the host's evaluation of the model.

calc_cond_batch   choose the condition that is read; its pass takes the gradient (gradient_pass.py)
post-CFG          add the shift to the denoised estimate (shift_step.py)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..keys import add_wrapper
from ..sampling.guiders import POSITIVE, list_names, positive_first
from ..sampling.placements import Conditions, full_frame_condition, placements_of
from .gradient_pass import UNREAD, GradientPass, GradientReader
from .shift_step import NOT_WHOLE, ShiftStep

NOT_EVALUATED = "another node evaluates the model in its own way, or leaves the step out"


class GradientStep(ShiftStep):
    """The gradient is taken in the model's own pass. further: arguments of every ShiftStep."""

    def __init__(self, **further: Any) -> None:
        super().__init__(**further)
        self.evaluated = not self.fresh
        self.problem = NOT_EVALUATED if self.fresh else None
        self.prediction: Tensor | None = None

    def reader(self) -> GradientReader:
        """The reader for the pass."""
        raise NotImplementedError

    def read(self, reader: GradientReader) -> None:
        """Keeps the results of the pass. Where a cache of the steps has skipped the model: `previous`."""
        self.gradient = reader.gradient
        self.problem, self.overflowed, self.unguided = reader.problem, reader.overflowed, reader.unguided
        if self.problem == UNREAD and self.previous is not None:
            self.gradient, self.problem, self.reused = self.previous, None, True

    def options(self, model_options: dict[str, Any]) -> dict[str, Any]:
        """A copy of the sampler's model_options in which this evaluation is guided."""
        options = super().options(model_options)
        if self.fresh or self.own_lists is not None:
            add_wrapper(options, WrappersMP.CALC_COND_BATCH, self.calc_cond_batch)
        return options

    def estimate(self, args: Mapping[str, Any]) -> Tensor | None:
        """The positive's prediction, not `denoised`, which includes guidance of other nodes."""
        return args["cond_denoised"] if self.own_lists is None else self.prediction

    def estimate_of_guider(self, denoised: Tensor) -> Tensor | None:
        """The positive's prediction."""
        return self.prediction

    def calc_cond_batch(
        self,
        executor: Callable[..., list[Tensor]],
        model: Any,
        conds: list[Conditions | None],
        x_in: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> list[Tensor]:
        """CALC_COND_BATCH wrapper: the first evaluation of a step is the sampler's own."""
        own = self.own_lists or {}
        names = list_names(conds, own)
        # A guider may evaluate its lists one by one: then wait for the positive.
        in_pass = None
        if not self.evaluated and (POSITIVE in names or POSITIVE not in own):
            in_pass = self.gradient_pass(conds, names, x_in, timestep, model_options)
        if in_pass is None:
            out = executor(model, conds, x_in, timestep, model_options)
        else:
            (reader,) = in_pass.readers
            out = executor(model, conds, x_in, timestep, in_pass.options(model_options))
            self.read(reader)
        if POSITIVE in own and POSITIVE in names and self.prediction is None:
            self.prediction = out[names.index(POSITIVE)]
        return out

    def gradient_pass(
        self,
        conds: list[Conditions | None],
        names: Sequence[str | None],
        x_in: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> GradientPass | None:
        """The pass that takes the gradient in an evaluation of these lists; None if no pass can."""
        window = model_options["transformer_options"].get("context_window")
        if window is None and x_in is not self.x and not torch.equal(x_in, self.x):
            self.problem = NOT_WHOLE
            return None
        self.evaluated = True
        if window is not None:
            self.problem = "the latent is evaluated in context windows. Sample without them to guide here"
            return None
        if self.own_lists is not None and POSITIVE not in self.own_lists:
            self.problem = "the guider has no prompt named positive"
            return None
        placements = {i: placements_of(conds[i] or [], x_in, timestep) for i in positive_first(names)}
        if any(name == POSITIVE and not placements[i] for i, name in enumerate(names)):
            self.problem = "the positive has no prompt for this step"
            return None
        chosen = full_frame_condition(placements, x_in)
        if chosen is None:
            self.problem = "no prompt covers the whole image"
            return None
        return GradientPass(self.reader(), chosen, x_in, placements)
