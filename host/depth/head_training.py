"""Train Depth Head: depth_head/training.py on the features of the host's frozen model, or on latents."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...depth_head.architectures import LATENT, STRONG, WEAK, DepthNetwork, build
from ...depth_head.architectures.latent import ESTIMATE
from ...depth_head.architectures.readout import Readout
from ...depth_head.depth_maps import read_depth_maps
from ...depth_head.estimates import stand_in
from ...depth_head.fitting import Features
from ...depth_head.head import DepthHead, LatentSpace, first_half_blocks, middle_blocks
from ...depth_head.head_report import LOSS, draw_head_report
from ...depth_head.training import TrainingResult, TrainingSettings, train
from ...pictures.images import as_rgb
from ..sampling.frozen_model import (
    Conditioning,
    FrozenModel,
    require_features,
    require_prompt,
    with_frozen_model,
)
from ..taps.blocks import feature_blocks, layer_names, parse_blocks
from ..taps.joint_models import joint_model
from ..taps.named_features import TIME_TAP
from ..taps.uncompiled import refuse_uncontrollable_compiler
from .calibration import calibration_of
from .estimation import as_sampled
from .heads import HostedDepthHead, block_count, feature_channels, latent_space, model_family
from .training_pairs import encode, labels_for, noise_of, require_depth, require_pairs, shares_of
from .training_watch import TrainingWatch

# `blocks` inputs: default_blocks.
AUTO = "auto"
# Memory of a training step of a latent head for each pixel of its batch: twice what the backward pass needs.
BYTES_PER_PIXEL = 6_000
# What the backward pass of a readout head needs for each pixel of its batch and each block that it reads.
READOUT_BYTES_PER_PIXEL = 10_400


@dataclass(frozen=True)
class Trained:
    """The outputs of the node: the head and the report (1, H, W, 3)."""

    head: HostedDepthHead
    report: Tensor


def train_depth_head(
    model: ModelPatcher,
    vae: Any,
    images: Tensor,
    depths: Tensor,
    architecture: str,
    blocks: str,
    weak_blocks: str,
    settings: TrainingSettings,
    positive: Conditioning | None,
) -> Trained:
    """Train a head on images (N, H, W, 3) and depth maps (N, h, w, C), relative inverse depth in [0, 1].

    Raises ValueError, before any long work, for pairs that do not match, for blocks that do not exist and for
    features that cannot be read.
    """
    require_pairs(images, depths)
    maps = read_depth_maps(depths, "depths")
    fits: str | LatentSpace = latent_space(model) if architecture == LATENT else model_family(model)
    network = new_network(model, architecture, blocks, weak_blocks, settings.seed)
    if architecture != LATENT:
        require_prompt(model, positive)
        refuse_uncontrollable_compiler(model, "Train Depth Head")
    progress = comfy.utils.ProgressBar(len(images) + settings.steps)
    first = encode(model, vae, images[:1], progress)
    labels = labels_for(vae, maps, images, first.shape[-2:])
    require_depth(labels)
    if architecture != LATENT:
        require_features(model, positive, list(network.taps), first)
    latents = torch.cat([first, encode(model, vae, images[1:], progress)])
    watch = TrainingWatch(LOSS, progress, len(images))

    def learn(features: Features, device: torch.device) -> TrainingResult:
        return train(
            network,
            features,
            labels.to(device),
            settings,
            watch.on_step,
            comfy.model_management.InterruptProcessingException,
        )

    def learn_features(frozen: FrozenModel) -> TrainingResult:
        return learn(features_of(frozen, latents, list(network.taps)), frozen.device)

    if architecture == LATENT:
        device = comfy.model_management.get_torch_device()
        pixels = settings.batch_size * latents.shape[-2] * latents.shape[-1]
        comfy.model_management.free_memory(BYTES_PER_PIXEL * pixels, device)
        result = learn(estimates_of(as_sampled(model, latents), device), device)
    else:
        shape = (rows_of_a_step(model, network, settings.batch_size, latents.shape), *latents.shape[1:])
        result = with_frozen_model(model, positive, shape, learn_features)
    if result.interrupted:
        logging.info(
            "Train Depth Head: interrupted after %d steps; the best head so far, after %d, is kept.",
            len(result.losses),
            result.best_step,
        )
    head = DepthHead(
        network,
        fits,
        settings.depth_range,
        summary(result, settings, len(images)),
        "this head",
        calibration_of(result.readings) if result.readings else None,
    )
    heading = f"{architecture} on {', '.join(network.branch_taps[STRONG])}"
    if WEAK in network.branch_taps:
        heading += f"; weak {network.branch_taps[WEAK][0]}"
    heading += f"; {len(result.losses)} steps on {len(images) - len(result.held_out)} images of {fits}"
    picture = draw_head_report(result, as_rgb(images[result.shown]), labels[result.shown], heading)
    return Trained(HostedDepthHead.of(head), picture[None])


def rows_of_a_step(model: ModelPatcher, network: DepthNetwork, batch: int, latents: Sequence[int]) -> int:
    """Rows for which the host makes room in a step on `batch` of the latents (N, C, ..., h, w).

    The room that it makes for passes of the model is enough for a head that reads pixels. The backward pass
    of a readout head needs several times as much, and counts as further rows.
    """
    if not isinstance(network, Readout):
        return batch
    needed = READOUT_BYTES_PER_PIXEL * len(network.residuals) * batch * latents[-2] * latents[-1]
    return batch + ceil(needed / model.model.memory_required([1, *latents[1:]]))


def new_network(
    model: ModelPatcher, architecture: str, blocks: str, weak_blocks: str, seed: int
) -> DepthNetwork:
    """A network for this model with random weights from the seed. Raises ValueError for the blocks."""
    if architecture == LATENT:
        return random_network(LATENT, {"channels": latent_space(model).channels}, seed)
    diffusion_model: Any = model.get_model_object("diffusion_model")
    is_transformer = joint_model(diffusion_model) is not None
    if architecture == "readout" and is_transformer:
        raise ValueError(
            f"The architecture readout reads the residual branches of a UNet, and {model_family(model)} has "
            "none: choose pixel_mlp."
        )
    channels = feature_channels(diffusion_model)
    available = {
        name: layers
        for name, layers in feature_blocks(diffusion_model).items()
        if architecture != "readout" or name[0] == "r"
    }
    names = layer_names(available)
    strong_default, weak_default = default_blocks(diffusion_model, architecture)

    def chosen(text: str, default: list[str]) -> list[str]:
        if text.strip().lower() == AUTO:
            return default
        return [names[layer] for layer in parse_blocks(text, available)]

    strong, weak = chosen(blocks, strong_default), chosen(weak_blocks, weak_default)
    order = [name for name in available if name in {*strong, *weak}]
    config: dict[str, Any] = {"taps": {name: channels[name] for name in order}, "weak": weak}
    if architecture == "readout":
        config |= {"embedding": (TIME_TAP, channels[TIME_TAP])}
    else:
        config |= {"strong": strong, "token_norm": is_transformer}
    return random_network(architecture, config, seed)


def random_network(architecture: str, config: Mapping[str, Any], seed: int) -> DepthNetwork:
    """A network with random weights from the seed, which are no inference tensors."""
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # no other device's
        return build(architecture, config)


def default_blocks(diffusion_model: Any, architecture: str) -> tuple[list[str], list[str]]:
    """The names of what the strong and the weak branch read if the user does not choose."""
    joint = joint_model(diffusion_model)
    strong: Sequence[int]
    if joint is not None:
        strong, weak = first_half_blocks(block_count(diffusion_model, joint))
        return [f"b{i}" for i in strong], [f"b{weak}"]
    count = len(diffusion_model.output_blocks)
    strong, weak = middle_blocks(count)
    if architecture == "readout":
        return [f"r{i}" for i in range(count)], [f"r{weak}"]
    return [f"o{i}" for i in strong], [f"o{weak}"]


def features_of(frozen: FrozenModel, latents: Tensor, names: Sequence[str]) -> Features:
    """The features that training reads: of some of the latents, with noise from the seeds."""

    def features(rows: Tensor, at: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        return frozen.features(names, latents[rows], noise_of(latents[rows], seeds), at)

    return features


def estimates_of(latents: Tensor, device: torch.device) -> Features:
    """The same for a latent head: what stands in for a model's clean estimates of some of the latents."""
    deviation = float(latents.std())

    def features(rows: Tensor, at: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        comfy.model_management.throw_exception_if_processing_interrupted()
        x0 = latents[rows]
        eta, shares = noise_of(x0, seeds).to(device), shares_of(seeds).to(device)
        return {ESTIMATE: stand_in(x0.to(device), eta, at.to(device), shares, deviation)}

    return features


def summary(result: TrainingResult, settings: TrainingSettings, images: int) -> dict[str, Any]:
    """The summary of the training for the head's file."""
    return {
        "images": images - len(result.held_out),
        "held_out": len(result.held_out),
        "steps": len(result.losses),
        "kept_after": result.best_step,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "seed": settings.seed,
        "aligned": settings.aligned,
        "abs_rel": {
            branch: {str(t): round(m.abs_rel, 4) for t, m in by_time.items()}
            for branch, by_time in result.figures.items()
        },
    }
