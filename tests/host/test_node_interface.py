"""Saved workflows keep working: ids, inputs, defaults and outputs of the nodes stay as they are."""

import copy

import pytest

from inner_guidance.nodes import NODES
from inner_guidance.tests.support.node_interface import incompatible_changes, saved, today

pytestmark = pytest.mark.oldest_host

SAG = "InnerSelfAttentionGuidance"


def test_saved_workflows_keep_working():
    assert incompatible_changes(saved(), today()) == []


def inputs_of_sag(interface):
    return interface[SAG]["inputs"]


def renamed(interface):
    inputs = inputs_of_sag(interface)
    inputs["strength"] = inputs.pop("scale")


def inserted(interface):
    inputs = inputs_of_sag(interface)
    others = dict(inputs)
    inputs.clear()
    inputs |= {"new": others["scale"]} | others


CHANGES = {
    "gone": lambda interface: interface.pop(SAG),
    "renamed": renamed,
    "inserted before other widgets": inserted,
    "type": lambda interface: inputs_of_sag(interface)["scale"].update(type="INT"),
    "default": lambda interface: inputs_of_sag(interface)["scale"].update(default=2.0),
    "required": lambda interface: interface["InnerDepthAwareGuidance"]["inputs"]["target_depth"].update(
        required=True
    ),
    "maximum": lambda interface: inputs_of_sag(interface)["scale"].update(max=1.0),
    "control of a seed": lambda interface: interface["InnerTrainDepthHead"]["inputs"]["seed"].update(
        control=True
    ),
    "option": lambda interface: inputs_of_sag(interface)["branch"]["options"].pop(),
    "new without a default": lambda interface: inputs_of_sag(interface).update(
        new={"type": "IMAGE", "required": True, "widget": False}
    ),
    "outputs in another order": lambda interface: interface["InnerLoadDemoModel"]["outputs"].reverse(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_that_breaks_workflows_is_found(change):
    changed = copy.deepcopy(saved())
    change(changed)

    assert incompatible_changes(saved(), changed) != []


def test_what_is_added_at_the_end_breaks_nothing():
    more = copy.deepcopy(saved())
    inputs_of_sag(more)["new"] = {"type": "FLOAT", "required": False, "widget": True, "default": 0.0}
    more[SAG]["outputs"].append(["IMAGE", "mask"])
    more["InnerNew"] = more[SAG]

    assert incompatible_changes(saved(), more) == []


def test_a_graph_that_is_queued_again_trains_nothing_again():
    """For true, ComfyUI's page sets the control of a new node's seed to randomize."""
    required = [node.GET_NODE_INFO_V1()["input"].get("required", {}) for node in NODES]
    seeds = [inputs["seed"][1] for inputs in required if "seed" in inputs]
    assert len(seeds) > 3
    assert all(options["control_after_generate"] in (False, "fixed") for options in seeds)
