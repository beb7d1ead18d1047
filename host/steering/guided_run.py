"""The common base of the guided sampling runs."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..gradients.kernels import refuse_without_training_kernels
from ..gradients.weights import refuse_quantised
from ..sampling.evaluated_steps import EvaluatedSteps
from ..sampling.guiders import combines_itself
from ..sampling.placements import Conditions
from ..sampling.schedule import first_sigmas, sigma_of
from ..sampling.sigma_ranges import SigmaRange, counted_from, is_due, is_part
from ..taps.uncompiled import refuse_uncontrollable_compiler


class PercentRange(NamedTuple):
    """The part of the sampling between two inputs of a node: their names and values."""

    start_input: str
    start: float
    end_input: str
    end: float


DEPTH_AWARE = "Depth-Aware Guidance"
CLASSIFIER = "Classifier Guidance"
# Factor of the gradients of fp16 models; LOSS_SCALE_STEP lowers it after one that was not finite.
LOSS_SCALE, LOSS_SCALE_STEP = 2.0**8, 2.0**-4


class GuidedRun:
    """One guided sampling run: where in the schedule it is guided, and the warnings it has given.

    node: its name in warnings. noise, latent_image, sigmas, denoise_mask: what the sampler is given; the last
    is None without one.
    """

    def __init__(
        self,
        node: str,
        guider: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None,
        start_percent: float,
        end_percent: float,
    ) -> None:
        self.node = node
        self.guider = guider
        self.denoise_mask = denoise_mask
        self.model_sampling = guider.model_patcher.get_model_object("model_sampling")
        self.counted_from = counted_from(self.model_sampling, noise, latent_image, sigmas)
        self.is_part = is_part(self.model_sampling, noise, sigmas)
        self.sample_sigmas = sigmas
        self.first_sigmas = first_sigmas(sampler, sigmas)
        self.steps = sigmas[:-1].tolist()
        self.percentages = PercentRange("start_percent", start_percent, "end_percent", end_percent)
        self.within = self.sigmas(self.percentages)
        self.evaluated: defaultdict[torch.Size, EvaluatedSteps] = defaultdict(EvaluatedSteps)
        self.warned: set[str] = set()

    @property
    def own_lists(self) -> dict[str, Conditions] | None:
        """The lists of conditions, by name, of a guider that combines predictions itself; None for others.

        For such a guider the guidance is added once, to its result. With other guiders the first post-CFG
        function adds it, so that those of other nodes get a guided estimate.
        """
        return self.guider.conds if combines_itself(self.guider) else None

    def sigmas(self, percentages: PercentRange) -> SigmaRange:
        """The sigmas between two percentages, which count in what this run samples."""
        return SigmaRange.from_percent(
            self.model_sampling, percentages.start, percentages.end, self.counted_from
        )

    def warn_unless_reached(self, percentages: PercentRange, inputs: Sequence[str]) -> None:
        """Log that inputs have no effect if no step of this run is between their percentages.

        Of the parts of a run, some may have no step there.
        """
        within = self.sigmas(percentages)
        if any(sigma in within for sigma in self.steps):
            return
        start_input, start, end_input, end = percentages
        if start >= end:
            why = (
                f"{start_input} ({start:g}) is not below {end_input} ({end:g}). Lower {start_input} or raise "
                f"{end_input}."
            )
        elif not self.is_part:
            why = (
                f"none of its {len(self.steps)} steps is between {start_input} ({start:g}) and {end_input} "
                f"({end:g}). Lower {start_input}, raise {end_input}, or sample more steps."
            )
        else:
            return
        logging.warning("%s: no effect of %s in this run: %s", self.node, " and ".join(inputs), why)

    def schedule(self, model_options: dict[str, Any]) -> Tensor:
        """The sigmas of the sampler, or those of this run if another node's options lack them."""
        return model_options.get("transformer_options", {}).get("sample_sigmas", self.sample_sigmas)

    def sigma_of(self, timestep: Tensor) -> float:
        """The sigma of an evaluation (schedule.sigma_of)."""
        return sigma_of(timestep, self.sample_sigmas, self.first_sigmas)

    def mask_at(self, timestep: Tensor, model_options: dict[str, Any]) -> Tensor | float:
        """1 where the sampler keeps what the model predicts, 0 where it pastes the given latent back."""
        if self.denoise_mask is None:
            return 1.0
        of_sigma = model_options.get("denoise_mask_function")
        if of_sigma is None:
            return self.denoise_mask
        of_run = {"model": self.guider, "sigmas": self.schedule(model_options)}
        return of_sigma(timestep, self.denoise_mask, extra_options=of_run)

    def start_of_step(self, x: Tensor, sigma: float, model_options: dict[str, Any]) -> float:
        """The sigma at which the step of this evaluation starts; that decides whether the guidance acts.

        Evaluations at another size (Euler SMEA Dyn) are counted apart.
        """
        return self.evaluated[x.shape].start(sigma, self.schedule(model_options))

    def is_due(self, sigma: float, sample_sigmas: Tensor, n: int, last: float) -> bool:
        """Whether the guidance of the step of sigma is computed, as at every n-th step (sigma_ranges.is_due).

        last: the sigma for which it was computed before.
        """
        return is_due(sigma, sample_sigmas, self.within, n, last)

    def warn(self, problem: str | None, sigma: float, images: Sequence[int] = ()) -> None:
        """Log why there is no guidance at this sigma, once in a run for each problem. None: no problem.

        images: those of the batch without guidance, if others have it.
        """
        if problem and problem not in self.warned:
            where = f" in image {', '.join(str(i + 1) for i in images)} of the batch" if images else ""
            logging.warning("%s has no effect%s at sigma %.3f: %s.", self.node, where, sigma, problem)
            self.warned.add(problem)


def seed_at(sigma: float, seed: int | None) -> int:
    """The seed of a step, from that of the run: below 2^64, as PyTorch asks."""
    return ((seed or 0) + round(sigma * 1e4)) % 2**64


def first_loss_scale(guider: Any) -> float:
    """The factor of a gradient in the backward pass, at the first step of a run."""
    # Not the model's own attribute, to which ModelComputeDtype's patch is applied only later.
    cast = guider.model_patcher.get_model_object("manual_cast_dtype")
    computed_in = cast or guider.model_patcher.model.get_dtype()
    return LOSS_SCALE if computed_in == torch.float16 else 1.0


def trains(sampler: Any, node: str) -> bool:
    """Whether this sampler is that of the host's Train LoRA, and nothing may be guided; logs that.

    Its loss compares the prediction with the images. From a guided one the LoRA would learn to undo the
    guidance.
    """
    found = type(sampler).__name__ == "TrainSampler"
    if found:
        logging.warning("%s: no effect in the training of a LoRA, which learns from the model alone.", node)
    return found


def require_differentiable(guider: Any, noise: Tensor, node: str) -> None:
    """Raises ValueError for a model without a backward pass here, and for the latent of a video.

    noise: (B, C, h, w), or (B, C, frames, h, w) with one frame.
    """
    diffusion_model = guider.model_patcher.model.diffusion_model
    if noise.ndim == 5 and noise.shape[2] > 1:
        raise ValueError(
            f"{node} guides images, and this latent is a video of {noise.shape[2]} frames: use a latent of "
            "one frame, or remove the node."
        )
    advice = "update ComfyUI"
    if node == DEPTH_AWARE:
        advice += ", or connect a depth head of the architecture latent"
    refuse_without_training_kernels(diffusion_model, node, advice)
    refuse_quantised(diffusion_model, node)
    refuse_uncontrollable_compiler(guider.model_patcher, node)


def finite_or_zero(*tensors: Tensor) -> tuple[list[Tensor], list[int]]:
    """The tensors (B, ...), with zeros for images in which one is not finite; and the numbers of these."""
    finite = torch.stack([t.isfinite().flatten(1).all(dim=1) for t in tensors]).all(dim=0)
    of_images = finite.view(-1, *[1] * (tensors[0].ndim - 1))
    return [torch.where(of_images, t, 0) for t in tensors], (~finite).nonzero().flatten().tolist()
