"""One step of Self-Attention Guidance inside the host's evaluation of the model.

    calc_cond_batch   the attention received is recorded (attention_recorder.py)
    pre-CFG, first    compute: mask, blur, extra pass, guidance
    CFG, post-CFG     the guidance is added

The guidance shifts the model's prediction, e + s (e - e_bar). So the CFG function of another node
(RescaleCFG, dynamic thresholding) gets shifted predictions, and its own evaluations are shifted too. Plain
CFG is linear, so there the shift is added to its result. Post-CFG functions get the predictions unshifted,
because they take differences of them (PAG, SLG) or renoise from them (CFG++ samplers).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...guidance import self_attention as sag
from ..keys import CALC_COND_BATCH_FUNCTION, add_wrapper
from ..sampling.attention_recorder import AttentionRecorder
from ..sampling.chunks import Evaluation
from ..sampling.crops import UNTRACED
from ..sampling.noise_levels import signal_coefficient, v_coefficient
from ..sampling.out_of_memory import out_of_memory_says
from ..sampling.placements import Conditions
from .added import Added
from .extra_pass import extra_pass
from .guided_run import finite_or_zero
from .sag_settings import BRANCHES, NEGATIVE, POSITIVE, SelfAttentionSettings

GUIDANCE = "self_attention_guidance"
NAMES = ("positive", "negative")  # the host's condition lists, in its order
OUT_OF_MEMORY = (
    "Self-Attention Guidance ran out of memory in its extra pass: lower the resolution or the batch size. A "
    "higher every_n_steps saves time, but no memory."
)


class SelfAttentionStep:
    """The guidance of one evaluation that the sampler asked for.

    previous: the guidance of the last extra pass, for this sigma; fresh False reuses it without an extra
    pass. `reused`: whether a fresh step had to. own_lists: GuidedRun.own_lists.
    """

    def __init__(
        self,
        settings: SelfAttentionSettings,
        denoise_mask: Tensor | float,
        seed: int,
        previous: Tensor | None,
        fresh: bool,
        own_lists: Mapping[str, Conditions] | None,
    ) -> None:
        self.settings = settings
        self.own_lists = own_lists
        self.denoise_mask = denoise_mask
        self.seed = seed
        self.previous = previous
        self.fresh = fresh
        self.reused = False
        self.guidance = None if fresh else previous
        self.problem: str | None = None
        self.unguided: list[int] = []
        self.recorder = AttentionRecorder(settings.layers, self.lists_to_record)
        self.computed = not fresh
        self.blurred: bool | None = None
        self.applied = False
        self.added = Added()

    def options(self, model_options: dict[str, Any]) -> dict[str, Any]:
        """A copy of the sampler's model_options in which this evaluation is guided."""
        options = comfy.model_patcher.create_model_options_clone(model_options)
        self.added = Added.shared(options)
        if self.fresh:
            add_wrapper(options, WrappersMP.CALC_COND_BATCH, self.recorder.calc_cond_batch)
            if self.settings.branch == "negative":
                # At cfg 1 the host skips the negative unless a node reads it.
                options["disable_cfg1_optimization"] = True
            options.setdefault("sampler_pre_cfg_function", []).insert(0, self.pre_cfg)
        others_cfg = options.get("sampler_cfg_function")
        if others_cfg is not None:
            options["sampler_cfg_function"] = partial(self.cfg, others_cfg)
        options.setdefault("sampler_post_cfg_function", []).insert(0, self.post_cfg)
        return options

    def lists_to_record(self, active: list[int], count: int) -> list[int]:
        """The branch's list of the host's [positive, negative]; all lists of any other guider."""
        if self.settings.mask == "global":
            return []
        if count != 2 or self.own_lists is not None:
            return active
        return [label for label in BRANCHES[self.settings.branch] if label in active][:1]

    def pre_cfg(self, args: dict[str, Any]) -> list[Tensor]:
        """sampler_pre_cfg_function; the first, so the predictions are the model's own."""
        self.compute(args, args["conds"], args["conds_out"])
        return args["conds_out"]

    def cfg(self, others: Callable[[dict[str, Any]], Tensor], args: dict[str, Any]) -> Tensor:
        """sampler_cfg_function in front of another node's."""
        self.compute(
            args,
            (args["input_cond"], args["input_uncond"]),
            (args["cond_denoised"], args["uncond_denoised"]),
        )
        guidance = self.guidance
        if guidance is None:
            return others(args)
        self.applied = True
        options = comfy.model_patcher.create_model_options_clone(args["model_options"])
        add_wrapper(options, WrappersMP.CALC_COND_BATCH, partial(shifted_calc_cond_batch, guidance))
        guided = {"model_options": options}
        guided |= {name: args[name] - guidance for name in ("cond", "uncond")}  # these are x - D(x)
        guided |= {name: args[name] + guidance for name in ("cond_denoised", "uncond_denoised")}
        result = others(args | guided)  # this is x - D(x) too
        return result if self.own_lists is None else result + guidance

    def post_cfg(self, args: dict[str, Any]) -> Tensor:
        """sampler_post_cfg_function; the first."""
        self.compute(args, (args["cond"], args["uncond"]), (args["cond_denoised"], args["uncond_denoised"]))
        if self.guidance is None or self.applied or self.own_lists is not None:
            return args["denoised"]
        return self.added.to(args["denoised"], self.guidance)

    def guided(self, denoised: Tensor, x: Tensor, sigma: Tensor, model_options: dict[str, Any]) -> Tensor:
        """The result of a guider that combines predictions itself, with the guidance."""
        self.compute({"input": x, "sigma": sigma, "model_options": model_options}, (), ())
        return denoised if self.guidance is None else self.added.to(denoised, self.guidance)

    def compute(
        self, args: dict[str, Any], conds: Sequence[Conditions | None], out: Sequence[Tensor | None]
    ) -> None:
        """Compute the guidance once, from the model's predictions: out[i] for conds[i], positive first.

        If a guider combines predictions itself, its positive and its negative count, whatever it combines.
        """
        if self.computed:
            return
        self.computed = True
        self.recorder.stop()
        if self.settings.mask != "global" and not self.recorder.traced(args["input"]):
            self.problem = UNTRACED
            return
        if self.own_lists is not None:
            others = [of_guider for name, of_guider in self.own_lists.items() if name not in NAMES]
            conds = [*map(self.own_lists.get, NAMES), *others]
            out = [self.recorder.prediction(branch, conds) for branch in (POSITIVE, NEGATIVE)]
        for branch in BRANCHES[self.settings.branch]:
            x0, found = out[branch], self.recorder.evaluation_and_label(branch, conds)
            if conds[branch] and x0 is not None and found:
                mask = self.mask(branch, conds, args["input"], x0)
                self.guide(args, branch, conds, mask, x0, *found)
                return
        self.problem = "no prompt of the branch is evaluated over the whole latent"

    def guide(
        self,
        args: dict[str, Any],
        branch: int,
        conds: Sequence[Conditions | None],
        mask: Tensor | None,
        x0: Tensor,
        evaluation: Evaluation,
        label: int,
    ) -> None:
        """Compute the guidance from one branch, its estimate and the evaluation behind that estimate."""
        x, sigma, model, settings = args["input"], args["sigma"], evaluation.model, self.settings
        if mask is None:
            # A cache of the steps may have skipped the model, or another node its attention.
            self.guidance, self.reused = self.previous, True
            if self.guidance is None:
                self.problem = "the attention of the chosen blocks could not be read"
            return
        x0_bar = sag.degrade(x0, mask * self.denoise_mask, settings.blur_sigma)
        self.blurred = not torch.equal(x0_bar, x0)
        if not self.blurred:  # the second pass would be the first
            self.guidance = torch.zeros_like(x0)
            return
        signal = signal_coefficient(model.model_sampling, sigma, x.ndim)
        x_bar = sag.renoise(x, x0, x0_bar, signal)
        with out_of_memory_says(OUT_OF_MEMORY):
            d_bar = self.extra_pass(args, branch, conds, x_bar, evaluation, label)
        in_v = v_coefficient(model.model_sampling, sigma, x.ndim) if settings.space == "v" else None
        guidance = sag.guidance(x0, x0_bar, d_bar, settings.scale, in_v)
        (guidance,), unguided = finite_or_zero(guidance)
        if unguided:
            self.problem = "the model returned numbers that are not finite"
        if len(unguided) < len(guidance):
            self.unguided = unguided
            self.guidance = guidance.to(x0.dtype)

    def extra_pass(
        self,
        args: dict[str, Any],
        branch: int,
        conds: Sequence[Conditions | None],
        x_bar: Tensor,
        evaluation: Evaluation,
        label: int,
    ) -> Tensor:
        """D(x_bar) for conds[branch]: list `label` of an evaluation, or a list that another node makes."""
        options, lists, state = args["model_options"], evaluation.lists(conds), evaluation.random_state
        if self.own_lists is not None:
            options = {name: value for name, value in options.items() if name != CALC_COND_BATCH_FUNCTION}
        elif CALC_COND_BATCH_FUNCTION in options:
            lists, label, state = list(conds), branch, self.recorder.evaluations[0].random_state
        lists[label] = conds[branch]
        return extra_pass(GUIDANCE, evaluation.model, lists, label, x_bar, args["sigma"], options, state)

    def mask(self, branch: int, conds: Sequence[Conditions | None], x: Tensor, x0: Tensor) -> Tensor | None:
        """M for a branch: (B, 1, *spatial); None if its attention was not recorded."""
        kind = self.settings.mask
        if kind == "global":
            return torch.ones_like(x[:, :1])
        change = None
        if kind == "random":
            generator = torch.Generator().manual_seed(self.seed)
            change = partial(sag.shuffle_tokens, generator=generator)
        received = self.recorder.received(branch, conds, x, change)
        if received is None:
            return None
        mask = (received > self.settings.threshold).to(x.dtype)
        if kind == "high frequency":
            mask = sag.high_frequency_mask(x0, mask, self.settings.blur_sigma)
        return mask


def shifted_calc_cond_batch(
    guidance: Tensor,
    executor: Callable[..., list[Tensor]],
    model: Any,
    conds: list[Conditions | None],
    x_in: Tensor,
    timestep: Tensor,
    model_options: dict[str, Any],
) -> list[Tensor]:
    """CALC_COND_BATCH wrapper for the evaluations of another node's CFG function."""
    window = model_options["transformer_options"].get("context_window")
    shift = guidance if window is None else window.get_tensor(guidance)
    return [d + shift for d in executor(model, conds, x_in, timestep, model_options)]
