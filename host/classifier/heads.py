"""Classifier heads on the host: the value of the type CLASSIFIER_HEAD, and whether a head fits a model."""

from dataclasses import dataclass

import comfy.model_management
from comfy.model_patcher import ModelPatcher

from ...classifier_head.head import ClassifierHead
from ..depth.heads import feature_channels, model_family


@dataclass(frozen=True)
class HostedClassifierHead:
    """A classifier head with its only patcher, through which the host moves it between devices."""

    head: ClassifierHead
    patcher: ModelPatcher

    @classmethod
    def of(cls, head: ClassifierHead) -> "HostedClassifierHead":
        """Give a head to the host."""
        return cls(
            head,
            ModelPatcher(
                head.network,
                load_device=comfy.model_management.get_torch_device(),
                offload_device=comfy.model_management.unet_offload_device(),
            ),
        )


def require_classifier_fits(head: ClassifierHead, model: ModelPatcher) -> None:
    """Raises ValueError, which names both, unless the head fits the model."""
    family = model_family(model)
    advice = "load a classifier head for it, or make one with Train Classifier Head"
    if head.model_family != family:
        raise ValueError(
            f"{head.name} reads the features of {head.model_family}, but this model is {family}: {advice}."
        )
    channels = feature_channels(model.get_model_object("diffusion_model"))
    for name, wanted in head.network.taps.items():
        if channels.get(name) != wanted:
            there = f"has {channels[name]} there" if name in channels else "has no such block"
            raise ValueError(
                f"{head.name} reads {wanted} channels at {name} of {head.model_family}, but this model "
                f"{there}: {advice}."
            )
