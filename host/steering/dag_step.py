"""One step of Depth-Aware Guidance inside the host's evaluation of the model.

calc_cond_batch   choose the condition that depth is read from; its pass takes the gradient (dag_gradient.py)
post-CFG          add the guidance to the denoised estimate
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...guidance import depth_aware as dag
from ..keys import add_wrapper
from ..sampling.guiders import POSITIVE, list_names, positive_first
from ..sampling.placements import Conditions, full_frame_condition, placements_of
from ..sampling.schedule import next_sigma, noise_share
from .dag_gradient import NOT_WHOLE, ChunkGradient
from .dag_losses import ROBUST, DepthAwareSettings, Networks


class DepthAwareStep:
    """The guidance of one evaluation that the sampler asked for, at the latent x.

    previous: the `gradient` of the last step that had one; fresh False uses it and takes none.
    share: of the shift that is added, 1 for most samplers. not_of_sampler: the post-CFG functions that were
    there before the sampler added its own. own_lists: GuidedRun.own_lists.
    """

    def __init__(
        self,
        settings: DepthAwareSettings,
        networks: Networks,
        x: Tensor,
        denoise_mask: Tensor | float,
        seed: int,
        loss_scale: float,
        previous: Tensor | None,
        fresh: bool,
        share: float,
        not_of_sampler: Collection[Callable[..., Any]],
        own_lists: Mapping[str, Conditions] | None,
    ) -> None:
        self.settings = settings
        self.own_lists = own_lists
        self.share = share
        self.not_of_sampler = not_of_sampler
        self.networks = networks
        self.x = x
        self.denoise_mask = denoise_mask
        self.seed = seed
        self.loss_scale = loss_scale
        self.fresh = fresh
        self.gradient = None if fresh else previous
        self.evaluated = not fresh
        self.problem: str | None = None
        self.overflowed = False
        self.unguided: list[int] = []
        self.depth: Tensor | None = None
        self.shift: Tensor | None = None
        self.prediction: Tensor | None = None

    def options(self, model_options: dict[str, Any]) -> dict[str, Any]:
        """A copy of the sampler's model_options in which this evaluation is guided."""
        options = comfy.model_patcher.create_model_options_clone(model_options)
        if self.fresh or self.own_lists is not None:
            add_wrapper(options, WrappersMP.CALC_COND_BATCH, self.calc_cond_batch)
        functions = options.get("sampler_post_cfg_function", [])
        options["sampler_post_cfg_function"] = [
            self.post_cfg,
            *(f if f in self.not_of_sampler else partial(self.for_sampler, f) for f in functions),
        ]
        return options

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
            self.problem = "the latent is evaluated in context windows"
            return None
        placements = {i: placements_of(conds[i] or [], x_in, timestep) for i in positive_first(names)}
        chosen = full_frame_condition(placements, x_in)
        if chosen is None:
            self.problem = "no prompt covers the whole image"
            return None
        return ChunkGradient(
            self.settings, self.networks, self.seed, self.loss_scale, chosen, x_in, placements
        )

    def post_cfg(self, args: dict[str, Any]) -> Tensor:
        """sampler_post_cfg_function; the first."""
        if self.own_lists is not None:
            self.find_shift(args["model"], args["sigma"], args["model_options"], self.prediction)
            return args["denoised"]
        # Not of `denoised`, which guidance of other nodes is in, before or after ours.
        self.find_shift(args["model"], args["sigma"], args["model_options"], args["cond_denoised"])
        return args["denoised"] if self.shift is None else args["denoised"] + self.shift

    def guided(self, denoised: Tensor, model: Any, sigma: Tensor, model_options: dict[str, Any]) -> Tensor:
        """What a guider returns that combines predictions itself, with the guidance."""
        self.find_shift(model, sigma, model_options, self.prediction)
        return denoised if self.shift is None else denoised + self.shift

    def find_shift(
        self, model: Any, sigma: Tensor, model_options: dict[str, Any], prediction: Tensor | None
    ) -> None:
        """The shift of the denoised estimate, from the gradient and the positive's prediction."""
        if self.gradient is None or prediction is None or self.gradient.shape != prediction.shape:
            return
        if self.settings.mode == ROBUST:
            share = noise_share(model.model_sampling, sigma, prediction.ndim)
            shift = dag.robust_shift(self.gradient, prediction, share)
        else:
            now = float(sigma.max())
            following = next_sigma(now, model_options["transformer_options"]["sample_sigmas"])
            flow = isinstance(model.model_sampling, comfy.model_sampling.CONST)
            shift = dag.paper_shift(self.gradient, now, following, flow)
        self.shift = self.share * self.denoise_mask * shift

    def for_sampler(self, function: Callable[[dict[str, Any]], Tensor], args: dict[str, Any]) -> Tensor:
        """A post-CFG function that the sampler has added: it gets a shifted unconditional estimate.

        CFG++ samplers compute the noise that they add again from it, (x - uncond_denoised) / sigma. With the
        shift in both estimates a step moves x by 1 - sigma_next / sigma of it, as Euler's does; with the
        shift in `denoised` alone, by all of it.
        """
        unconditional = args["uncond_denoised"]
        if self.shift is None or unconditional is None:
            return function(args)
        return function(args | {"uncond_denoised": unconditional + self.shift})
