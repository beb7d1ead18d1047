"""Classifier heads on the host: the value of the type CLASSIFIER_HEAD, and whether a head fits a model."""

from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher

from ...classifier_head.head import ClassifierHead
from ...depth_head.head import require_fit
from ..depth.heads import feature_channels, model_family, patcher_of


@dataclass(frozen=True)
class HostedClassifierHead:
    """A classifier head with its only patcher, through which the host moves it between devices."""

    head: ClassifierHead
    patcher: ModelPatcher

    @classmethod
    def of(cls, head: ClassifierHead) -> "HostedClassifierHead":
        """Give a head to the host."""
        return cls(head, patcher_of(head.network))


def require_classifier_fits(head: ClassifierHead, model: ModelPatcher) -> None:
    """Raises ValueError, in a sentence that names both, unless a head fits a model."""
    channels = feature_channels(model.get_model_object("diffusion_model"))
    require_fit(head, model_family(model), channels, "classifier head")
