"""Self-Attention Guidance in a sampling run.

The node attaches SelfAttentionGuidance, which is immutable, to the model. As an OUTER_SAMPLE wrapper it makes
this run's SelfAttentionRun. As a PREDICT_NOISE wrapper, the run makes a SelfAttentionStep for each guided
evaluation and passes all others through unchanged. The state of a run is dropped at its end, so a cached
MODEL and the branches of a graph never share anything.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...guidance.classifier import NOISE_ALONE
from ..keys import GuiderExecutor, for_this_run
from ..sampling.noise_levels import noise_to_signal
from .guided_run import GuidedRun, seed_at, trains
from .sag_settings import SelfAttentionSettings
from .sag_step import SelfAttentionStep

NODE = "Self-Attention Guidance"


@dataclass(frozen=True, eq=False)  # other nodes look for wrappers in lists and sets
class SelfAttentionGuidance:
    """OUTER_SAMPLE wrapper: guides a run as the settings say."""

    settings: SelfAttentionSettings

    def __call__(
        self,
        executor: GuiderExecutor,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Run the sampling. Raises ValueError if the run does not have the chosen branch."""
        guider = executor.class_obj
        if trains(sampler, NODE):
            return executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)
        if self.settings.branch == "negative" and not guider.conds.get("negative"):
            raise ValueError(
                f"{NODE}: branch is 'negative', but the guider has no negative conditioning. "
                "Set branch to 'auto' or 'positive'."
            )
        run = SelfAttentionRun(self.settings, guider, noise, latent_image, sampler, sigmas, denoise_mask)
        with for_this_run(guider, WrappersMP.PREDICT_NOISE, run.predict_noise):
            samples = executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)
        if run.blurred == {False} and self.settings.mask != "global":
            logging.warning(
                "%s: no effect of scale in this run: no place%s has attention above threshold (%g). Lower "
                "threshold.",
                NODE,
                "" if denoise_mask is None else " of the inpainted area",
                self.settings.threshold,
            )
        return samples


class SelfAttentionRun(GuidedRun):
    """The state of a run after its last fresh step, by size of the latent: guidance, sigma, reused.

    Some samplers (Euler SMEA Dyn) evaluate the latent at a second size within a step. A step after one that
    reused guidance is fresh. blurred: whether a step found something to blur, of all steps.
    """

    def __init__(
        self,
        settings: SelfAttentionSettings,
        guider: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None,
    ) -> None:
        percentages = settings.start_percent, settings.end_percent
        super().__init__(NODE, guider, noise, latent_image, sampler, sigmas, denoise_mask, *percentages)
        self.settings = settings
        self.warn_unless_reached(self.percentages, ["scale"])
        self.last: dict[torch.Size, tuple[Tensor, float, bool]] = {}
        self.blurred: set[bool] = set()

    def predict_noise(
        self,
        executor: GuiderExecutor,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        seed: int | None = None,
    ) -> Tensor:
        """PREDICT_NOISE wrapper: one evaluation at x and sigma that the sampler asks for."""
        sigma = self.sigma_of(timestep)
        if self.start_of_step(x, sigma, model_options) not in self.within:
            return executor(x, timestep, model_options, seed)
        schedule = self.schedule(model_options)
        _, last, reused = self.last.get(x.shape, (None, math.inf, True))
        previous = self.previous(x.shape, sigma)
        step = SelfAttentionStep(
            self.settings,
            self.mask_at(timestep, model_options),
            seed=seed_at(sigma, seed),
            previous=previous,
            fresh=previous is None
            or reused
            or self.is_due(sigma, schedule, self.settings.every_n_steps, last),
            own_lists=self.own_lists,
        )
        options = step.options(model_options)
        denoised = executor(x, timestep, options, seed)
        if step.own_lists is not None:
            denoised = step.guided(denoised, x, timestep, options)
        if step.fresh:
            self.last.pop(x.shape, None)
            if step.guidance is not None and self.can_be_held(sigma):
                self.last[x.shape] = step.guidance, sigma, step.reused
        if step.blurred is not None:
            self.blurred.add(step.blurred)
        self.warn(step.problem, sigma, step.unguided)
        return denoised

    def previous(self, shape: torch.Size, sigma: float) -> Tensor | None:
        """The last guidance of a latent of this shape, for another sigma.

        e - e_bar is held constant. For x = a x0 + c e that is a shift of x0 proportional to c / a.
        """
        if shape not in self.last or not self.can_be_held(sigma):
            return None
        guidance, last, _ = self.last[shape]
        now, then = (noise_to_signal(self.model_sampling, at) for at in (sigma, last))
        return guidance * (now / then)

    def can_be_held(self, sigma: float) -> bool:
        """Whether there is a difference e - e_bar to hold: where x is noise alone, e = e_bar.

        Where it has no noise, there is no e.
        """
        return 0 < noise_to_signal(self.model_sampling, sigma) < 1 / NOISE_ALONE
