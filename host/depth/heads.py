"""Depth heads in the host: the value of the type DEPTH_HEAD, and whether a head fits a model."""

from dataclasses import dataclass
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher

from ...depth_head.head import SD1, SDXL, DepthHead, require_fit
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
        return cls(
            head,
            ModelPatcher(
                head.network,
                load_device=comfy.model_management.get_torch_device(),
                offload_device=comfy.model_management.unet_offload_device(),
            ),
        )


def require_head_fits(head: DepthHead, model: ModelPatcher) -> None:
    """Raises ValueError, in a sentence that names both, unless a head fits a model."""
    require_fit(head, model_family(model), feature_channels(model.get_model_object("diffusion_model")))


def model_family(model: ModelPatcher) -> str:
    """The family of a model, in words. Raises ValueError if it is not a UNet."""
    unet = model.get_model_object("diffusion_model")
    if not hasattr(unet, "input_blocks"):
        raise ValueError(
            f"Depth heads read the features of UNets, and this model is none ({type(unet).__name__}): use a "
            "checkpoint of Stable Diffusion 1.x, 2.x or XL."
        )
    config = model.model.model_config.unet_config
    if config.get("use_temporal_attention"):
        return "Stable Video Diffusion"
    channels, context = config["model_channels"], config.get("context_dim")
    return FAMILIES.get((channels, context), f"a UNet of {channels} channels with a context of {context}")


def feature_channels(unet: Any) -> dict[str, int]:
    """Channels of all features that a depth head may read, by the names of blocks.py and TIME_TAP."""
    channels = {f"i{i}": _out_channels(block[-1]) for i, block in enumerate(unet.input_blocks)}
    if unet.middle_block is not None:
        channels["m0"] = _out_channels(unet.middle_block[-1])
    for i, block in enumerate(unet.output_blocks):
        channels |= {f"r{i}": block[0].out_channels, f"o{i}": _out_channels(block[-1])}
    return channels | {TIME_TAP: unet.time_embed[-1].out_features}


def _out_channels(layer: Any) -> int:
    """A transformer has as many output as input channels, and only the latter as an attribute."""
    return getattr(layer, "out_channels", None) or layer.in_channels
