"""One step of Depth-Aware Guidance by a head that reads features, inside the host's evaluation of the model.

calc_cond_batch   choose the condition that depth is read from; its pass takes the gradient (dag_gradient.py)
post-CFG          add the guidance to the denoised estimate (dag_step.py)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..keys import add_wrapper
from ..sampling.guiders import POSITIVE, list_names, positive_first
from ..sampling.placements import Conditions, full_frame_condition, placements_of
from .dag_gradient import ChunkGradient
from .dag_step import NOT_WHOLE, DepthAwareStep


class FeatureStep(DepthAwareStep):
    """The guidance by a head that reads features: the gradient is taken in the model's own pass.

    loss_scale: what the losses are multiplied by in the backward pass. The others: dag_step.py.
    """

    def __init__(self, *args: Any, loss_scale: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loss_scale = loss_scale
        self.evaluated = not self.fresh
        self.prediction: Tensor | None = None

    def options(self, model_options: dict[str, Any]) -> dict[str, Any]:
        """A copy of the sampler's model_options in which this evaluation is guided."""
        options = super().options(model_options)
        if self.fresh or self.own_lists is not None:
            add_wrapper(options, WrappersMP.CALC_COND_BATCH, self.calc_cond_batch)
        return options

    def estimate(self, args: Mapping[str, Any]) -> Tensor | None:
        """The positive's prediction: not `denoised`, which guidance of other nodes is in."""
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
        # A guider may evaluate its lists one by one: then the positive is waited for.
        taken = None
        if not self.evaluated and (POSITIVE in names or POSITIVE not in own):
            taken = self.chunk_gradient(conds, names, x_in, timestep, model_options)
        if taken is None:
            out = executor(model, conds, x_in, timestep, model_options)
        else:
            out = executor(model, conds, x_in, timestep, taken.options(model_options))
            self.gradient, self.depth = taken.gradient, taken.depth
            self.problem, self.overflowed, self.unguided = taken.problem, taken.overflowed, taken.unguided
        if POSITIVE in own and POSITIVE in names and self.prediction is None:
            self.prediction = out[names.index(POSITIVE)]
        return out

    def chunk_gradient(
        self,
        conds: list[Conditions | None],
        names: Sequence[str | None],
        x_in: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> ChunkGradient | None:
        """Takes the gradient in an evaluation of these lists; None if it cannot be taken there."""
        window = model_options["transformer_options"].get("context_window")
        if window is None and x_in is not self.x and not torch.equal(x_in, self.x):
            self.problem = NOT_WHOLE
            return None
        self.evaluated = True
        if window is not None:
            self.problem = "the latent is evaluated in context windows. Sample without them to guide by depth"
            return None
        placements = {i: placements_of(conds[i] or [], x_in, timestep) for i in positive_first(names)}
        chosen = full_frame_condition(placements, x_in)
        if chosen is None:
            self.problem = "no prompt covers the whole image"
            return None
        return ChunkGradient(
            self.settings, self.networks, self.seed, self.loss_scale, chosen, x_in, placements
        )
