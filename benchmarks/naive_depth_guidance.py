"""Depth-Aware Guidance implemented naively, as the baseline for DepthAwareGuidance.

After the sampler's evaluation, the whole UNet runs again for the positive prompt and keeps every activation
for the backward pass. Only the weights are not copied: they are aliased as in DepthAwareGuidance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..depth_head.architectures import BRANCHES, DepthNetwork
from ..guidance import depth_aware as dag
from ..host.gradients.weights import differentiable_weights
from ..host.keys import GuiderExecutor
from ..host.sampling.noise_levels import noise_share, time_at
from ..host.taps.blocks import FeatureLayer, feature_blocks
from ..host.taps.feature_tap import FeatureTap


def naively_guided(model: ModelPatcher, network: DepthNetwork) -> ModelPatcher:
    """The model with depth consistency guidance. The network must be on the model's device."""
    model = model.clone()
    model.add_wrapper_with_key(
        WrappersMP.PREDICT_NOISE, "naive_depth_guidance", NaiveDepthGuidance(network).predict_noise
    )
    return model


@dataclass(frozen=True)
class NaiveDepthGuidance:
    """Guides by the consistency of the network's strong and weak depth."""

    network: DepthNetwork

    def predict_noise(
        self,
        executor: GuiderExecutor,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        seed: int | None = None,
    ) -> Tensor:
        """PREDICT_NOISE wrapper. Guides every evaluation."""
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
        """grad_x L_dc at x, (B, C, H, W), through the whole UNet."""
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
            del out  # keeps the graph of all blocks alive until here
        return gradient
