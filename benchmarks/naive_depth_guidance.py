"""Depth-Aware Guidance as it is written in the paper, for comparison: what DepthAwareGuidance saves.

After the sampler's own evaluation the whole UNet runs a second time, for the prompt whose depth is read, with
everything kept for the backward pass. Even so the weights are aliased
and not copied, which somebody who starts from nothing would have to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from inner_guidance.depth_head.architectures import BRANCHES, DepthNetwork
from inner_guidance.guidance import depth_aware as dag
from inner_guidance.host.gradients.weights import differentiable_weights
from inner_guidance.host.keys import GuiderExecutor
from inner_guidance.host.sampling.schedule import noise_share, time_at
from inner_guidance.host.taps.blocks import FeatureLayer, feature_blocks
from inner_guidance.host.taps.feature_tap import FeatureTap


def naively_guided(model: ModelPatcher, network: DepthNetwork) -> ModelPatcher:
    """The model with depth consistency guidance by a network that is on its device."""
    model = model.clone()
    model.add_wrapper_with_key(
        WrappersMP.PREDICT_NOISE, "naive_depth_guidance", NaiveDepthGuidance(network).predict_noise
    )
    return model


@dataclass(frozen=True)
class NaiveDepthGuidance:
    """The depth network that guides."""

    network: DepthNetwork

    def predict_noise(
        self,
        executor: GuiderExecutor,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        seed: int | None = None,
    ) -> Tensor:
        """PREDICT_NOISE wrapper: guides every evaluation."""
        denoised = executor(x, timestep, model_options, seed)
        guider = executor.class_obj
        (positive,) = guider.conds["positive"]
        gradient = self.gradient(
            guider.inner_model, x, timestep, positive["model_conds"]["c_crossattn"].cond.to(x)
        )
        share = noise_share(guider.inner_model.model_sampling, timestep, x.ndim)
        return denoised + dag.robust_shift(gradient / dag.rms(gradient), denoised, share)

    @torch.inference_mode(False)
    def gradient(self, model: Any, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """grad_x L_dc, through everything."""
        blocks = feature_blocks(model.diffusion_model)
        layers = {blocks[name][0]: name for name in self.network.taps}
        features: dict[str, Tensor] = {}

        def read(layer: FeatureLayer, feature: Tensor) -> None:
            features[layers[layer]] = feature

        with torch.enable_grad(), differentiable_weights(model):
            leaf = x.clone().requires_grad_()
            sigma, context = sigma.clone(), context.clone()
            with FeatureTap(tuple(layers), read).reading(model.diffusion_model, leaf, context):
                out = model.apply_model(leaf, sigma, c_crossattn=context, transformer_options={})
            time = time_at(model.model_sampling, sigma)
            strong, weak = self.network.branches(features, time, x.shape[-2:], BRANCHES)
            loss = dag.consistency_loss(strong, weak).sum()
            (gradient,) = torch.autograd.grad(loss, leaf)
            del out  # until here, with the graph of all blocks
        return gradient
