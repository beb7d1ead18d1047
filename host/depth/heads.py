"""Depth heads in the host: the value of the type DEPTH_HEAD, and whether a head fits a model."""

import copy
import hashlib
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ...depth_head.head import SD1, SDXL, DepthHead, LatentSpace, require_fit, require_latent_space
from ..taps.blocks import MODELS
from ..taps.joint_models import JointModel, joint_model
from ..taps.named_features import TIME_TAP

# By the UNet's channels and the width of its prompt, which all checkpoints of a family share.
FAMILIES = {
    (320, 768): SD1,
    (320, 1024): "Stable Diffusion 2.x",
    (320, 2048): SDXL,
    (384, 1280): "the refiner of Stable Diffusion XL",
    (64, 128): "the demo model of Inner Guidance",
}


@dataclass(frozen=True)
class HostedDepthHead:
    """A depth head with its only patcher, by which the host moves it between devices."""

    head: DepthHead
    patcher: ModelPatcher

    @classmethod
    def of(cls, head: DepthHead) -> "HostedDepthHead":
        """Wrap a head for the host."""
        return cls(head, patcher_of(head.network))

    @property
    def device(self) -> torch.device:
        """Where the network is: the model that it reads may be elsewhere."""
        return next(self.head.network.parameters()).device


class WholePatcher(ModelPatcher):
    """Loads all of a network, however little memory the host would give it.

    The host leaves layers on the CPU (`--novram`) or takes them back there, since it moves the weights of its
    own kinds of layers when they are used. Heads have PyTorch's.
    """

    def partially_load(
        self, device_to: torch.device, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> Any:
        """Load the network as with memory enough for it."""
        enough = max(extra_memory, self.model_size() + 1)
        return super().partially_load(device_to, enough, force_patch_weights)


def patcher_of(network: torch.nn.Module) -> ModelPatcher:
    """What the host moves a head's network by, between the devices that it uses for models."""
    patcher = WholePatcher(
        network,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    # How the host copies what is loaded with a model that it evaluates on several GPUs.
    patcher.cached_patcher_init = (copied_patcher, (network,))
    return patcher


def copied_patcher(network: torch.nn.Module) -> ModelPatcher:
    """The patcher of a copy of a network."""
    return patcher_of(copy.deepcopy(network))


def require_head_fits(head: DepthHead, model: ModelPatcher) -> None:
    """Raises ValueError, in a sentence that names both, unless a head fits a model."""
    if isinstance(head.model_family, LatentSpace):
        require_latent_space(head, latent_space(model))
        return
    require_fit(head, model_family(model), feature_channels(model.get_model_object("diffusion_model")))


def reads_latents(head: DepthHead) -> bool:
    """Whether a head reads the clean latent, not the features of a model."""
    return isinstance(head.model_family, LatentSpace)


def require_reads_features(head: DepthHead, node: str) -> None:
    """Raises ValueError for a latent head. node: what needs another one."""
    if reads_latents(head):
        raise ValueError(
            f"{head.name} reads latents, but {node} reads depth from the model's features: connect a depth "
            "head of another architecture."
        )


def latent_space(model: ModelPatcher) -> LatentSpace:
    """The latents that a model's samplers work on."""
    latent_format: Any = model.get_model_object("latent_format")
    channels = latent_format.latent_channels
    zeros = torch.zeros(1, channels, *[1] * latent_format.latent_dimensions)
    shift = latent_format.process_in(zeros).flatten()
    scale = latent_format.process_in(zeros + 1).flatten() - shift
    # Rounded, because the subtraction rounds differently where there is a shift.
    scales, shifts = ([f"{value:.4g}" for value in of_channels.tolist()] for of_channels in (scale, shift))
    said = f"scale {scales[0]}, shift {shifts[0]}" if any(shift) else f"scale {scales[0]}"
    if len({*scales}) > 1 or len({*shifts}) > 1:
        digest = hashlib.sha256(" ".join((*scales, *shifts)).encode()).hexdigest()
        said = f"scales {digest[:8]}"
    return LatentSpace(type(latent_format).__name__, channels, said)


def model_family(model: ModelPatcher) -> str:
    """The family of a model, in words. Raises ValueError if its features cannot be read."""
    diffusion_model: Any = model.get_model_object("diffusion_model")
    joint = joint_model(diffusion_model)
    if joint is not None:
        blocks, width = block_count(diffusion_model, joint), attrgetter(joint.width)(diffusion_model)
        return f"{type(model.model).__name__} with {blocks} blocks of {width} channels"
    if not hasattr(diffusion_model, "input_blocks"):
        raise ValueError(
            f"Heads cannot read the features of this model, {type(diffusion_model).__name__}: use {MODELS}."
        )
    config = model.model.model_config.unet_config
    if config.get("use_temporal_attention"):
        return "Stable Video Diffusion"
    channels, context = config["model_channels"], config.get("context_dim")
    return FAMILIES.get((channels, context), f"a UNet of {channels} channels with a context of {context}")


def feature_channels(diffusion_model: Any) -> dict[str, int]:
    """Channels of all features that a depth head may read, by the names of blocks.py and TIME_TAP."""
    joint = joint_model(diffusion_model)
    if joint is not None:
        width = attrgetter(joint.width)(diffusion_model)
        return {f"b{i}": width for i in range(block_count(diffusion_model, joint))}
    unet = diffusion_model
    channels = {f"i{i}": _out_channels(block[-1]) for i, block in enumerate(unet.input_blocks)}
    if unet.middle_block is not None:
        channels["m0"] = _out_channels(unet.middle_block[-1])
    for i, block in enumerate(unet.output_blocks):
        channels |= {f"r{i}": block[0].out_channels, f"o{i}": _out_channels(block[-1])}
    return channels | {TIME_TAP: unet.time_embed[-1].out_features}


def block_count(diffusion_model: Any, joint: JointModel) -> int:
    """The number of blocks in all stacks of a joint model."""
    return sum(len(getattr(diffusion_model, stack.attribute)) for stack in joint.stacks)


def _out_channels(layer: Any) -> int:
    """A transformer has as many output as input channels, and only the latter as an attribute."""
    return getattr(layer, "out_channels", None) or layer.in_channels
