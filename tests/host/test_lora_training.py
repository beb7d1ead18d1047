"""Train LoRA on a guided model: guidance is for sampling."""

import pytest

from inner_guidance.nodes.classifier_guidance import InnerClassifierGuidance
from inner_guidance.nodes.demo_model import InnerLoadDemoModel
from inner_guidance.nodes.depth_aware_guidance import InnerDepthAwareGuidance
from inner_guidance.nodes.self_attention_guidance import InnerSelfAttentionGuidance
from inner_guidance.tests.support.lora_training import trained
from inner_guidance.tests.support.node_defaults import execute

pytestmark = pytest.mark.slow


def test_the_lora_learns_from_the_model_alone(caplog):
    model, clip, _, depth_head, _, classifier_head, _ = InnerLoadDemoModel.execute().args
    guided = execute(InnerSelfAttentionGuidance, model=model)[0]
    guided = execute(InnerDepthAwareGuidance, model=guided, depth_head=depth_head)[0]
    given = {"classifier_head": classifier_head, "class_name": classifier_head.head.classes[0]}
    guided = execute(InnerClassifierGuidance, model=guided, **given)[0]

    _, losses = trained(guided, clip)

    assert losses == trained(model, clip)[1]
    why = "no effect in the training of a LoRA, which learns from the model alone."
    nodes = ("Self-Attention Guidance", "Depth-Aware Guidance", "Classifier Guidance")
    assert [m for m in caplog.messages if "training" in m] == [f"{node}: {why}" for node in nodes]
