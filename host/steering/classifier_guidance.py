"""Classifier Guidance in a sampling run, built like dag_run.py.

The gradient of log p(y | x) is taken in the pass of the positive prompt, at the latent that the sampler
evaluates. Self-Attention Guidance degrades another copy of the latent and adds its own shift.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...classifier_head.network import ClassifierNetwork
from ...guidance.classifier import NOISE_ALONE, classifier_shift, log_probability
from ..classifier.heads import HostedClassifierHead, require_classifier_fits
from ..keys import GuiderExecutor, for_this_run
from ..sampling.noise_levels import noise_coefficient, noise_to_signal, signal_coefficient
from .gradient_pass import GradientReader
from .gradient_step import GradientStep
from .guided_run import (
    CLASSIFIER,
    LOSS_SCALE_STEP,
    GuidedRun,
    first_loss_scale,
    require_differentiable,
    trains,
)


@dataclass(frozen=True)
class ClassifierSettings:
    """The settings of the node: the number of the class, and the scale s."""

    head: HostedClassifierHead
    label: int
    scale: float
    start_percent: float
    end_percent: float
    checkpointing: bool


@dataclass(frozen=True, eq=False)  # other nodes look for wrappers in lists and sets
class ClassifierGuidance:
    """OUTER_SAMPLE wrapper: guides a run as the settings say."""

    settings: ClassifierSettings

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
        """Run the sampling. Raises ValueError for a model that cannot be differentiated."""
        guider = executor.class_obj
        patcher = guider.model_patcher
        if trains(sampler, CLASSIFIER):
            return executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)
        require_classifier_fits(self.settings.head.head, patcher)
        require_differentiable(guider, noise, CLASSIFIER)
        run = ClassifierRun(self.settings, guider, noise, latent_image, sampler, sigmas, denoise_mask)
        with for_this_run(guider, WrappersMP.PREDICT_NOISE, run.predict_noise):
            return executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)


class ClassifierRun(GuidedRun):
    """The state of a run: the loss scale, and the network on the model's device.

    last: the gradient and the noise coefficient there, for each size of the latent.
    """

    def __init__(
        self,
        settings: ClassifierSettings,
        guider: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None,
    ) -> None:
        whole = settings.start_percent, settings.end_percent
        super().__init__(CLASSIFIER, guider, noise, latent_image, sampler, sigmas, denoise_mask, *whole)
        self.warn_unless_reached(self.percentages, ["scale"])
        self.warn_of_noise_alone()
        self.settings = settings
        self.loss_scale = first_loss_scale(guider)
        self.last: dict[torch.Size, tuple[Tensor, Tensor]] = {}
        self.not_of_sampler = guider.model_options.get("sampler_post_cfg_function", [])
        with torch.inference_mode(mode=False):
            network = copy.deepcopy(settings.head.head.network)
            self.network = network.to(guider.model_patcher.load_device).requires_grad_(False).eval()

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
        step = ClassifierStep(
            self.settings,
            self.network,
            self.loss_scale,
            x=x,
            denoise_mask=self.mask_at(timestep, model_options),
            previous=self.previous(x, timestep),
            fresh=True,
            not_of_sampler=self.not_of_sampler,
            own_lists=self.own_lists,
        )
        denoised = executor(x, timestep, step.options(model_options), seed)
        if step.own_lists is not None:
            denoised = step.guided(denoised, self.guider.inner_model, timestep)
        if step.gradient is not None:
            self.last[x.shape] = step.gradient, noise_coefficient(self.model_sampling, timestep, x.ndim)
        self.warn(step.problem, sigma, step.unguided)
        if step.overflowed:
            self.loss_scale *= LOSS_SCALE_STEP
        return denoised

    def warn_of_noise_alone(self) -> None:
        """Log that nothing is guided if x is noise alone in all steps: a flow model's first one is."""
        ratios = [noise_to_signal(self.model_sampling, sigma) for sigma in self.steps if sigma in self.within]
        if ratios and min(ratios) * NOISE_ALONE >= 1 and not self.is_part:
            logging.warning(
                "%s: no effect of scale in this run: where it guides, the latent is noise alone, with "
                "nothing to classify. Raise end_percent, or sample more steps.",
                CLASSIFIER,
            )

    def previous(self, x: Tensor, timestep: Tensor) -> Tensor | None:
        """The last gradient of a latent like x, for another sigma.

        c grad log p is held constant, which is the shift of the noise, as Self-Attention Guidance holds its.
        """
        if x.shape not in self.last:
            return None
        gradient, noise = self.last[x.shape]
        return gradient * (noise / noise_coefficient(self.model_sampling, timestep, x.ndim))


class ClassifierStep(GradientStep):
    """The guidance of one evaluation by a class. further: what every GradientStep takes."""

    def __init__(
        self, settings: ClassifierSettings, network: ClassifierNetwork, loss_scale: float, **further: Any
    ) -> None:
        super().__init__(**further)
        self.settings = settings
        self.network = network
        self.loss_scale = loss_scale

    def reader(self) -> "ClassifierGradient":
        """The gradient of log p(y | x)."""
        return ClassifierGradient(self.settings, self.network, self.loss_scale)

    def shift_of(self, gradient: Tensor, model: Any, sigma: Tensor, estimate: Tensor) -> Tensor:
        """The shift of the estimate towards the class."""
        signal = signal_coefficient(model.model_sampling, sigma, estimate.ndim)
        noise = noise_coefficient(model.model_sampling, sigma, estimate.ndim)
        return classifier_shift(gradient, signal, noise, self.settings.scale)


class ClassifierGradient(GradientReader):
    """The gradient of log p(y | x) with respect to x."""

    def __init__(self, settings: ClassifierSettings, network: ClassifierNetwork, loss_scale: float) -> None:
        super().__init__(CLASSIFIER, network.taps, network.taps, loss_scale, settings.checkpointing)
        self.network = network
        self.label = settings.label

    def products(
        self, features: Mapping[str, Tensor], time: Tensor, size: Sequence[int]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The log-probability of the class, for each image."""
        log_p = log_probability(self.network(features, time), self.label)
        return [log_p], [torch.full_like(log_p, self.loss_scale)]

    def take(self, gradient: Tensor) -> None:
        """The gradient, divided by the loss scale."""
        for finite in self.finite(gradient):
            self.gradient = finite / self.loss_scale
