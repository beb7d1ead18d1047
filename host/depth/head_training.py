"""Train Depth Head: encodes labelled images and runs depth_head/training.py on the host's frozen UNet."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...depth_head.architectures import DepthNetwork, build
from ...depth_head.depth_maps import read_depth_maps
from ...depth_head.head import DepthHead, middle_blocks
from ...depth_head.head_report import LOSS, draw_head_report
from ...depth_head.training import Features, TrainingResult, TrainingSettings, train
from ..sampling.frozen_unet import Conditioning, FrozenUNet, with_frozen_unet
from ..taps.blocks import feature_blocks, layer_names, parse_blocks
from ..taps.named_features import TIME_TAP
from .estimation import require_latents
from .heads import HostedDepthHead, feature_channels, model_family
from .training_watch import TrainingWatch

# `blocks` inputs: the middle of the decoder (depth_head/head.py), all ResBlocks for a Readout network.
AUTO = "auto"
SAME_SHAPE = 0.02  # relative difference of the aspects of an image and its depth map


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

    Raises ValueError, before any long work, for pairs that do not match and blocks that do not exist.
    """
    require_pairs(images, depths)
    maps = read_depth_maps(depths, "depths")
    family = model_family(model)
    network = new_network(model, architecture, blocks, weak_blocks, settings.seed)
    progress = comfy.utils.ProgressBar(len(images) + settings.steps)
    latents = encode(model, vae, images, progress)
    labels = labels_for(vae, maps, images, latents.shape[-2:])
    require_depth(labels)

    def work(unet: FrozenUNet) -> TrainingResult:
        watch = TrainingWatch(LOSS, progress, len(images))
        return train(
            network,
            features_of(unet, latents, list(network.taps)),
            labels.to(unet.device),
            settings,
            watch.on_step,
            comfy.model_management.InterruptProcessingException,
        )

    shape = (settings.batch_size, *latents.shape[1:])
    result = with_frozen_unet(model, positive, shape, work)
    if result.interrupted:
        logging.info(
            "Train Depth Head: interrupted after %d steps; the best head so far, after %d, is kept.",
            len(result.losses),
            result.best_step,
        )
    head = DepthHead(
        network, family, settings.depth_range, summary(result, settings, len(images)), "this head"
    )
    heading = (
        f"{architecture} on {', '.join(network.branch_taps['strong'])}; weak {network.branch_taps['weak'][0]}"
    )
    heading += f"; {len(result.losses)} steps on {len(images) - len(result.held_out)} images of {family}"
    picture = draw_head_report(result, images[result.shown, ..., :3], labels[result.shown], heading)
    return Trained(HostedDepthHead.of(head), picture[None])


def require_pairs(images: Tensor, depths: Tensor) -> None:
    """Raises ValueError unless there are at least two images, each with a depth map of the same aspect."""
    if len(images) != len(depths):
        raise ValueError(
            f"There are {len(images)} images but {len(depths)} depth maps: connect a depth map for every "
            "image, in the same order."
        )
    if len(images) < 2:
        raise ValueError(
            "A depth head needs at least two images with depth maps, one to learn from and one to judge by; "
            "ten are a good start."
        )
    if images.numel() == 0 or depths.numel() == 0:
        raise ValueError("The images or the depth maps have no pixels: check the nodes that make them.")
    aspect, label_aspect = (t.shape[2] / t.shape[1] for t in (images, depths))
    if abs(label_aspect / aspect - 1) > SAME_SHAPE:
        raise ValueError(
            f"The images are {images.shape[2]} x {images.shape[1]}, the depth maps {depths.shape[2]} x "
            f"{depths.shape[1]}: use depth maps of the same aspect ratio. Their resolution may differ."
        )


def require_depth(labels: Tensor) -> None:
    """Raises ValueError if the part of the depth maps that the VAE encodes is uniform."""
    if labels.std() < 1e-3:
        raise ValueError("The depth maps are of one grey throughout: connect depth maps, near = white.")


def new_network(
    model: ModelPatcher, architecture: str, blocks: str, weak_blocks: str, seed: int
) -> DepthNetwork:
    """A network for this model with random weights from the seed. Raises ValueError for the blocks."""
    unet: Any = model.get_model_object("diffusion_model")
    channels = feature_channels(unet)
    letter = "r" if architecture == "readout" else "o"
    available = {
        name: layers
        for name, layers in feature_blocks(unet).items()
        if architecture != "readout" or name[0] == "r"
    }
    names = layer_names(available)
    strong_default, weak_default = middle_blocks(len(unet.output_blocks))
    if architecture == "readout":
        strong_default = range(len(unet.output_blocks))

    def chosen(text: str, default: Sequence[int]) -> list[str]:
        if text.strip().lower() == AUTO:
            return [f"{letter}{i}" for i in default]
        return [names[layer] for layer in parse_blocks(text, available)]

    strong, weak = chosen(blocks, strong_default), chosen(weak_blocks, [weak_default])
    order = [name for name in available if name in {*strong, *weak}]
    config: dict[str, Any] = {"taps": {name: channels[name] for name in order}, "weak": weak}
    if architecture == "readout":
        config |= {"embedding": (TIME_TAP, channels[TIME_TAP])}
    else:
        config |= {"strong": strong}
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(architecture, config)


def encode(model: ModelPatcher, vae: Any, images: Tensor, progress: comfy.utils.ProgressBar) -> Tensor:
    """Latents (N, C, h, w) of images, one after the other.

    Raises ValueError, at the first, for images that are too small and for a VAE of another model.
    """
    if 0 in vae.vae_encode_crop_pixels(images[:1, ..., :3]).shape:
        raise ValueError(
            f"The images are {images.shape[2]} x {images.shape[1]}, less than the VAE can encode: use larger "
            "ones."
        )
    latents: list[Tensor] = []
    for image in images.split(1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        latents.append(vae.encode(image[..., :3]).cpu())
        require_latents(model, latents[-1])
        progress.update(1)
    return torch.cat(latents)


def labels_for(vae: Any, depth: Tensor, images: Tensor, size: Sequence[int]) -> Tensor:
    """Depth maps (N, 1, h, w) as labels (N, 1, *size): of the part of the images that the VAE encodes."""
    mode = "area" if depth.shape[-1] >= images.shape[2] else "bilinear"
    depth = F.interpolate(depth, images.shape[1:3], mode=mode)
    cropped = vae.vae_encode_crop_pixels(depth.expand(-1, 3, -1, -1).movedim(1, -1))[..., :1].movedim(-1, 1)
    return F.interpolate(cropped, tuple(size), mode="area").clamp(0, 1)


def features_of(unet: FrozenUNet, latents: Tensor, names: Sequence[str]) -> Features:
    """The features that training reads: of some of the latents, with noise from the seeds."""

    def features(rows: Tensor, at: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        return unet.features(names, latents[rows], noise_of(latents[rows], seeds), at)

    return features


def noise_of(latents: Tensor, seeds: Tensor) -> Tensor:
    """Standard normal noise for latents (B, ...), each from its seed, the same on every device."""
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    return torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators])


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
