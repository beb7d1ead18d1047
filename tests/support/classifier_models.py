"""Classifier heads with random weights for the tiny models, and Classifier Guidance by them."""

import torch

from inner_guidance.classifier_head.head import ClassifierHead
from inner_guidance.classifier_head.network import ClassifierNetwork
from inner_guidance.host.classifier.heads import HostedClassifierHead
from inner_guidance.nodes.classifier_guidance import InnerClassifierGuidance
from inner_guidance.tests.support.depth_models import FAMILIES
from inner_guidance.tests.support.node_defaults import execute

TAPS = {"o1": 64, "o2": 32}
CLASSES = ("cat", "cow", "dog")


def head(seed=0):
    with torch.inference_mode(False):
        torch.manual_seed(seed)
        network = ClassifierNetwork(TAPS, len(CLASSES), (16, 16)).requires_grad_(False).eval()
        network.logits.weight *= 50  # sure of itself, so that the gradient is large
    return HostedClassifierHead.of(
        ClassifierHead(network, FAMILIES["small"], CLASSES, name="classifier_of_test")
    )


def classifier_guided(model, **settings):
    """The model with Classifier Guidance behind it, towards the first class."""
    settings = {"model": model, "classifier_head": head(), "class_name": "cat"} | settings
    return execute(InnerClassifierGuidance, **settings)[0]
