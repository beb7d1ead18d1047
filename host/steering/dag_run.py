"""Depth-Aware Guidance in a sampling run, built like sag_run.py.

The node attaches DepthAwareGuidance, which is immutable, to the model. As an OUTER_SAMPLE wrapper it makes
this run's DepthAwareRun. As a PREDICT_NOISE wrapper, the run makes a DepthAwareStep for each guided
evaluation and passes all others through unchanged.
"""

import copy
import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...pictures.live import depth_picture
from ..depth.heads import reads_latents, require_head_fits
from ..keys import GuiderExecutor, for_this_run
from ..live_preview import LivePreview
from ..sampling.noise_levels import signal_coefficient
from ..sampling.schedule import TOLERANCE, next_sigma, step_of
from ..sampling.sigma_ranges import percent_at
from .dag_feature_step import DepthFeatureStep
from .dag_latent_step import LatentStep
from .dag_losses import ROBUST, DepthAwareSettings, Networks, flat_targets
from .dag_step import DepthAwareStep
from .guided_run import (
    DEPTH_AWARE,
    LOSS_SCALE_STEP,
    GuidedRun,
    PercentRange,
    first_loss_scale,
    require_differentiable,
    seed_at,
    trains,
)


@dataclass(frozen=True, eq=False)  # other nodes look for wrappers in lists and sets
class DepthAwareGuidance:
    """OUTER_SAMPLE wrapper: guides a run as the settings say."""

    settings: DepthAwareSettings

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
        """Run the sampling. Raises ValueError if the model must be differentiated and cannot be."""
        guider = executor.class_obj
        patcher = guider.model_patcher
        if trains(sampler, DEPTH_AWARE):
            return executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)
        require_head_fits(self.settings.head.head, patcher)
        if not reads_latents(self.settings.head.head):
            require_differentiable(guider, noise, DEPTH_AWARE)
        run = DepthAwareRun(self.settings, guider, noise, latent_image, sampler, sigmas, denoise_mask)
        try:
            with for_this_run(guider, WrappersMP.PREDICT_NOISE, run.predict_noise):
                samples = executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)
        finally:
            run.preview.end()
        run.log_if_never_pushed()
        return samples


class DepthAwareRun(GuidedRun):
    """The state of a run: the last gradient, the loss scale, head and prior on the model's device.

    pushed: whether any gradient was not 0, a tensor on the device; None before the first.
    last: the gradient, its scales, its sigma and whether it was reused there, for each size of the latent,
    because some samplers (Euler SMEA Dyn) evaluate it at a second size within a step.
    """

    def __init__(
        self,
        settings: DepthAwareSettings,
        guider: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None,
    ) -> None:
        whole = settings.start_percent, settings.end_percent
        super().__init__(DEPTH_AWARE, guider, noise, latent_image, sampler, sigmas, denoise_mask, *whole)
        self.settings = settings
        self.preview = LivePreview(settings.preview_node, len(self.steps))
        self.percentages_of = percentages_of_strengths(settings, self.percentages)
        for one in dict.fromkeys(self.percentages_of.values()):
            self.warn_unless_reached(one, [name for name, of in self.percentages_of.items() if of == one])
        flat = ", ".join(str(image + 1) for image in flat_targets(settings, noise))
        if flat:
            logging.warning(
                "%s: no effect of target_scale in image %s of the batch: within the frame of the image and "
                "target_mask, its target_depth has a single grey value. Connect a depth map with near and "
                "far there, or enlarge target_mask.",
                DEPTH_AWARE,
                flat,
            )
        self.skipped = percent_at(self.model_sampling, self.counted_from)
        self.ranges = {name: self.sigmas(of) for name, of in self.percentages_of.items()}
        self.loss_scale = first_loss_scale(guider)
        self.networks = networks_for(settings, guider.model_patcher.load_device)
        self.renoises_estimate = renoises_estimate(sampler)
        self.not_of_sampler = guider.model_options.get("sampler_post_cfg_function", [])
        self.last: dict[torch.Size, tuple[Tensor | None, tuple[float, ...], float, bool]] = {}
        self.pushed: Tensor | None = None

    def acting_at(self, sigma: float) -> DepthAwareSettings:
        """The settings at this sigma: without the losses that do not act there, with the blur left there."""
        off: dict[str, Any] = {name: 0.0 for name, within in self.ranges.items() if sigma not in within}
        acting = replace(self.settings, **off)
        if acting.uses_target and acting.target_blur > 0:
            acting = replace(acting, target_blur=acting.target_blur * self.blur_left(sigma))
        return acting

    def blur_left(self, sigma: float) -> float:
        """1 at 0 percent, falling evenly to 0 where the target ends."""
        here = (percent_at(self.model_sampling, sigma) - self.skipped) / (1 - self.skipped)
        return max(0.0, 1 - here / self.percentages_of["target_scale"].end)

    def new_step(self, **settings: Any) -> DepthAwareStep:
        """A step of the kind that the head needs."""
        if reads_latents(self.settings.head.head):
            return LatentStep(**settings)
        return DepthFeatureStep(loss_scale=self.loss_scale, **settings)

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
        start = self.start_of_step(x, sigma, model_options)
        settings = self.acting_at(start)
        if not settings.acts:
            return executor(x, timestep, model_options, seed)
        schedule = self.schedule(model_options)
        following = next_sigma(sigma, schedule)
        last, last_scales, last_sigma, reused = self.last.get(x.shape, (None, (), math.inf, False))
        if last_scales != settings.scales:
            last = None
        # Later evaluations of a step take the gradient of the one at its start: see EvaluatedSteps.
        at_start = math.isclose(sigma, start, rel_tol=TOLERANCE)
        later = not at_start and math.isclose(last_sigma, start, rel_tol=TOLERANCE)
        step = self.new_step(
            settings=settings,
            networks=self.networks,
            x=x,
            denoise_mask=self.mask_at(timestep, model_options),
            seed=seed_at(sigma, seed),
            previous=last,
            fresh=last is None
            or (not later and (reused or self.is_due(sigma, schedule, settings.every_n_steps, last_sigma))),
            following=following,
            share=self.share(sigma, following) if self.renoises_estimate else 1.0,
            not_of_sampler=self.not_of_sampler,
            own_lists=self.own_lists,
        )
        denoised = executor(x, timestep, step.options(model_options), seed)
        if step.own_lists is not None:
            denoised = step.guided(denoised, self.guider.inner_model, timestep)
        if step.fresh:
            self.last[x.shape] = step.gradient, settings.scales, sigma, step.reused
            if step.gradient is not None:
                found = step.gradient.any()
                self.pushed = found if self.pushed is None else self.pushed | found
        depth = step.depth
        if depth is not None:
            self.preview.show(step_of(sigma, schedule) + 1, lambda: depth_picture(depth))
        self.warn(step.problem, sigma, step.unguided)
        if step.overflowed:
            self.loss_scale *= LOSS_SCALE_STEP
        return denoised

    def share(self, sigma: float, following: float) -> float:
        """The part of a shift of the estimate with which a step that renoises it moves x as Euler's does.

        Euler's moves x by 1 - sigma_next / sigma of a shift. The next x holds a_next of the estimate: all of
        it, but 1 - sigma_next in flow models. (There the quotient exceeds 1 for a sigma above 1 alone, which
        is no noise level.) 0 where the noise rises.
        """
        held = signal_coefficient(self.model_sampling, torch.tensor([following]), ndim=1).item()
        return min(max(1 - following / sigma, 0.0) / held, 1.0) if held > 0 else 0.0

    def log_if_never_pushed(self) -> None:
        """Log that all images were as good as real ones, which the hinge leaves alone."""
        if self.pushed is not None and not self.pushed:
            logging.info(
                "%s: nothing was changed in this run. By consistency and prior, the depth of the images is "
                "as good as that of real images, and only what is worse is pushed.",
                DEPTH_AWARE,
            )


def percentages_of_strengths(settings: DepthAwareSettings, whole: PercentRange) -> dict[str, PercentRange]:
    """The range in which each strength acts, by input; whole: from start_percent to end_percent.

    Early in the sampling, an emptier scene satisfies consistency and prior most easily, so they remove
    objects. Late in the sampling, a target can no longer change the composition and leaves blotches
    (docs/results/depth_aware_guidance_sweep.md).
    """
    of_self = of_target = whole
    if settings.mode == ROBUST and settings.self_start_percent > whole.start:
        of_self = whole._replace(start_input="self_start_percent", start=settings.self_start_percent)
    if settings.mode == ROBUST and settings.target_end_percent < whole.end:
        of_target = whole._replace(end_input="target_end_percent", end=settings.target_end_percent)
    found = {}
    if settings.consistency_scale != 0:
        found["consistency_scale"] = of_self
    if settings.uses_prior:
        found["prior_scale"] = of_self
    if settings.uses_target:
        found["target_scale"] = of_target
    return found


def renoises_estimate(sampler: Any) -> bool:
    """Whether each step of a sampler adds fresh noise to the denoised estimate and keeps nothing of x.

    LCM and its variants do, and SamplerARVideo. Their steps get a part of the shift: DepthAwareRun.share.
    """
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    return "lcm" in name or name == "sample_ar_video"


def networks_for(settings: DepthAwareSettings, device: torch.device) -> Networks:
    """Copies of head and prior for one run, on a device. They are small, and may be inference tensors."""
    with torch.inference_mode(mode=False):
        head = copy.deepcopy(settings.head.head.network).to(device).requires_grad_(False).eval()
        if settings.prior is None or not settings.uses_prior:
            return Networks(head, None)
        unet = copy.deepcopy(settings.prior.unet).to(device).requires_grad_(False).eval()
        return Networks(head, replace(settings.prior, unet=unet))
