"""One step of Depth-Aware Guidance inside the host's evaluation of the model.

calc_cond_batch   choose the condition to read depth from
apply_model       differentiate the losses of that depth, within the model's own pass (gradients/forward.py)
post-CFG          the guidance is added to the denoised estimate
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
from ..gradients.forward import Features, evaluate_with_gradient
from ..gradients.rows import rows_are_independent
from ..keys import WRAPPER_KEY, ModelExecutor, add_wrapper
from ..sampling.crops import conditions_of, evaluates_whole
from ..sampling.guiders import POSITIVE, list_names, positive_first
from ..sampling.out_of_memory import out_of_memory_says
from ..sampling.placements import Conditions, Placement, full_frame_condition, placements_of
from ..sampling.schedule import next_sigma, noise_share, time_at
from ..taps.named_features import NamedFeatures
from .dag_losses import ROBUST, DepthAwareSettings, Networks, losses

NOT_WHOLE = "another node evaluates the latent in parts, or resizes, flips, pads or changes it"


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
        self.pull_size: Tensor | None = None
        self.evaluated = not fresh
        self.problem: str | None = None
        self.overflowed = False
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
        if not self.evaluated and (POSITIVE in names or POSITIVE not in own):
            model_options = self.reading_options(conds, names, x_in, timestep, model_options)
        out = executor(model, conds, x_in, timestep, model_options)
        if POSITIVE in own and POSITIVE in names and self.prediction is None:
            self.prediction = out[names.index(POSITIVE)]
        return out

    def reading_options(
        self,
        conds: list[Conditions | None],
        names: Sequence[str | None],
        x_in: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> dict[str, Any]:
        """The model_options for an evaluation of these lists in which the gradient is taken, if it can be."""
        window = model_options["transformer_options"].get("context_window")
        if window is None and x_in is not self.x and not torch.equal(x_in, self.x):
            self.problem = NOT_WHOLE
            return model_options
        self.evaluated = True
        if window is not None:
            self.problem = "the latent is evaluated in context windows"
            return model_options
        placements = {i: placements_of(conds[i] or [], x_in, timestep) for i in positive_first(names)}
        chosen = full_frame_condition(placements, x_in)
        if chosen is None:
            self.problem = "no prompt covers the whole image"
            return model_options
        self.problem = "the features of the model could not be read"
        return ChunkReading(self, chosen, x_in, placements).options(model_options)

    def taps(self, branches: Sequence[str]) -> set[str]:
        """The names of what these branches of the head read."""
        return {name for branch in branches for name in self.networks.head.branch_taps[branch]}

    def products(
        self, features: dict[str, Tensor], time: Tensor, size: Sequence[int], seeded: torch.Generator
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Depth maps from the features, and what the losses ask of them, at the loss scale."""
        branches, guiding = self.settings.branches, self.settings.guiding_branches
        maps = self.networks.head.branches(features, time, size, branches)
        self.depth = maps[0].detach()
        asked = dag.pull(
            maps[0],
            maps[1] if len(maps) > 1 else None,
            list(losses(self.settings, self.networks, maps[0], seeded)),
            normalise=self.settings.mode == ROBUST,
        )
        self.pull_size = asked.size
        pairs = zip(branches, maps, asked.cotangents(self.loss_scale), strict=True)
        outputs, cotangents = zip(*((d, c) for branch, d, c in pairs if branch in guiding), strict=True)
        return list(outputs), list(cotangents)

    def take(self, gradient: Tensor | None) -> None:
        """What the backward pass returned, at the loss scale."""
        if gradient is None or self.pull_size is None:
            return
        if not (gradient.isfinite().all() and self.pull_size.isfinite().all()):
            self.problem, self.overflowed = "its gradient is not finite", True
            return
        self.problem = None
        if self.settings.mode == ROBUST:
            self.gradient = dag.direction(gradient, self.pull_size.to(gradient))
        else:
            self.gradient = gradient * (self.pull_size.to(gradient) / self.loss_scale)

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


class ChunkReading:
    """Takes the gradient in the forward pass that holds a chunk: a condition, for the whole latent batch.

    placements: of all conditions that are active.
    """

    def __init__(
        self,
        step: DepthAwareStep,
        chunk: tuple[int, Any],
        latent: Tensor,
        placements: Mapping[int, Mapping[Any, Placement]],
    ) -> None:
        self.step = step
        self.chunk = chunk
        self.latent = latent
        self.placements = placements
        self.done = False

    def options(self, model_options: dict[str, Any]) -> dict[str, Any]:
        """A copy of model_options with this in front of every other APPLY_MODEL wrapper.

        It evaluates the rows of a pass in two passes, and what others read of a pass they must read of each.
        """
        options = comfy.model_patcher.create_model_options_clone(model_options)
        wrappers = options["transformer_options"].setdefault("wrappers", {})
        others = wrappers.get(WrappersMP.APPLY_MODEL, {})
        ours = [self.apply_model, *others.get(WRAPPER_KEY, [])]
        wrappers[WrappersMP.APPLY_MODEL] = {WRAPPER_KEY: ours} | {
            key: value for key, value in others.items() if key != WRAPPER_KEY
        }
        return options

    def apply_model(
        self,
        executor: ModelExecutor,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None,
        c_crossattn: Tensor | None,
        control: dict[str, Any] | None,
        transformer_options: dict[str, Any],
        **kwargs: Any,
    ) -> Tensor:
        """APPLY_MODEL wrapper: one forward pass."""
        chunks, batch = conditions_of(transformer_options), len(self.latent)
        if self.done or self.chunk not in chunks:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        if not evaluates_whole(self.chunk, x, c_crossattn, transformer_options, self.latent, self.placements):
            self.step.problem = NOT_WHOLE
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        self.done = True
        start = chunks.index(self.chunk) * batch
        rows = range(start, start + batch)
        step, model = self.step, executor.class_obj
        time = time_at(model.model_sampling, t[rows.start : rows.stop]).clone()
        taps, guiding_taps = map(step.taps, (step.settings.branches, step.settings.guiding_branches))
        apart = len(chunks) == 1 or rows_are_independent(model, transformer_options)
        named = NamedFeatures(model.diffusion_model, taps, rows=None if apart else list(rows))

        def products(features: Features) -> tuple[list[Tensor], list[Tensor]]:
            seeded = torch.Generator().manual_seed(step.seed)
            return step.products(named.with_time(features), time, x.shape[-2:], seeded)

        with out_of_memory_says(out_of_memory(step.settings.checkpointing, apart)):
            out, gradient = evaluate_with_gradient(
                executor,
                rows,
                named.layers,
                products,
                {
                    "x": x,
                    "t": t,
                    "c_concat": c_concat,
                    "c_crossattn": c_crossattn,
                    "control": control,
                    "transformer_options": named.options(transformer_options),
                    **kwargs,
                },
                apart=apart,
                constant=[layer for layer, name in named.names.items() if name not in guiding_taps],
                checkpointing=step.settings.checkpointing,
            )
        step.take(gradient)
        return out


def out_of_memory(checkpointing: bool, apart: bool) -> str:
    """What to change when a step with a gradient does not fit into memory."""
    advice = ["lower the resolution or the batch size"]
    if not checkpointing:
        advice.insert(0, "turn on checkpointing")
    if not apart:
        advice.append("remove other nodes that patch the model, which keep both prompts in the gradient")
    return (
        f"Depth-Aware Guidance ran out of memory while taking its gradient: {', or '.join(advice)}. "
        "A higher every_n_steps saves time, but no memory."
    )
