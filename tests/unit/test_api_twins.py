"""From the canvas's format to the API's."""

import pytest

from inner_guidance.tools.api_twins import WorkflowError, to_api

OBJECT_INFO = {
    "Load": {"input": {"required": {}}, "display_name": "Load Model"},
    "Sampler": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"control_after_generate": True}],
                "sampler": [["euler", "heun"], {}],
                "scheduler": ["COMBO", {"options": ["normal"]}],
            },
            "optional": {"strength": ["FLOAT", {}], "level": ["FLOAT", {"forceInput": True}]},
        },
        "display_name": None,
    },
    "Render": {
        "input": {
            "required": {
                "output": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {
                                "key": "depth",
                                "inputs": {
                                    "required": {"range": ["COMBO", {}], "image": ["IMAGE", {}]},
                                    "optional": {"clip": ["BOOLEAN", {}]},
                                },
                            },
                            {"key": "sky", "inputs": {"required": {}}},
                        ]
                    },
                ],
                "size": ["INT", {}],
            }
        },
        "display_name": "Render",
    },
}


def workflow(values):
    model_slot = {"name": "model", "type": "MODEL", "link": 5}
    strength_slot = {"name": "strength", "type": "FLOAT", "widget": {"name": "strength"}, "link": None}
    return {
        "nodes": [
            {
                "id": 7,
                "type": "Sampler",
                "mode": 0,
                "inputs": [model_slot, strength_slot],
                "widgets_values": values,
            },
            {"id": 3, "type": "Load", "mode": 0, "title": "The model", "inputs": [], "widgets_values": []},
            {"id": 4, "type": "MarkdownNote", "mode": 0, "inputs": [], "widgets_values": ["# Try this"]},
        ],
        "links": [[5, 3, 0, 7, 0, "MODEL"]],
    }


def test_values_get_the_names_of_their_widgets_and_links_their_source():
    prompt = to_api(workflow([42, "fixed", "heun", "normal", 0.5]), OBJECT_INFO)

    assert prompt == {
        "3": {"class_type": "Load", "inputs": {}, "_meta": {"title": "The model"}},
        "7": {
            "class_type": "Sampler",
            "inputs": {
                "seed": 42,
                "sampler": "heun",
                "scheduler": "normal",
                "strength": 0.5,
                "model": ["3", 0],
            },
            "_meta": {"title": "Sampler"},
        },
    }


def test_a_link_wins_over_the_value_of_its_widget():
    linked = workflow([42, "fixed", "heun", "normal", 0.5])
    linked["nodes"][0]["inputs"][1]["link"] = 6
    linked["links"].append([6, 3, 1, 7, 1, "FLOAT"])

    assert to_api(linked, OBJECT_INFO)["7"]["inputs"]["strength"] == ["3", 1]


def test_a_bypassed_node_is_left_out_with_its_links():
    bypassed = workflow([42, "fixed", "heun", "normal", 0.5])
    bypassed["nodes"][1]["mode"] = 4

    prompt = to_api(bypassed, OBJECT_INFO)

    assert prompt.keys() == {"7"}
    assert "model" not in prompt["7"]["inputs"]


def test_too_few_values_are_refused():
    with pytest.raises(WorkflowError, match=r"Sampler \(node 7\) stores 4 values"):
        to_api(workflow([42, "heun", "normal", 0.5]), OBJECT_INFO)


def test_unknown_node_is_refused():
    with pytest.raises(WorkflowError, match="node 7 is a Sampler, which this host does not have"):
        to_api(workflow([42, "fixed", "heun", "normal", 0.5]), {"Load": OBJECT_INFO["Load"]})


@pytest.mark.parametrize(
    ("values", "inputs"),
    [
        (
            ["depth", "raw", True, 64],
            {"output": "depth", "output.range": "raw", "output.clip": True, "size": 64},
        ),
        (["sky", 64], {"output": "sky", "size": 64}),
    ],
)
def test_a_dynamic_combo_is_followed_by_the_inputs_of_its_option(values, inputs):
    render = {"id": 1, "type": "Render", "mode": 0, "inputs": [], "widgets_values": values}

    assert to_api({"nodes": [render], "links": []}, OBJECT_INFO)["1"]["inputs"] == inputs


@pytest.mark.parametrize("values", [[], ["depth", "raw", 64], ["clouds", "raw", True, 64]])
def test_values_that_do_not_fit_the_option_are_refused(values):
    render = {"id": 1, "type": "Render", "mode": 0, "inputs": [], "widgets_values": values}

    with pytest.raises(WorkflowError, match=rf"Render \(node 1\) stores {len(values)} values"):
        to_api({"nodes": [render], "links": []}, OBJECT_INFO)
