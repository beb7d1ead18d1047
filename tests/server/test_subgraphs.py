"""The subgraph blueprints: the server offers them, and what they hold runs with the demo model."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inner_guidance.tests.support.node_defaults import with_defaults
from inner_guidance.tools.api_twins import widget_slots

FOLDER = Path(__file__).resolve().parents[2] / "subgraphs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
# What a user connects to the inputs of a blueprint: node and output of the graph below.
CONNECTED = {
    "model": ["model", 0],
    "vae": ["model", 2],
    "depth_head": ["model", 3],
    "image": ["scenes", 0],
    "positive": ["empty", 0],
}
OTHERS = {
    "empty": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": ""}},
    "scenes": {"class_type": "InnerDemoScenes", "inputs": {"first_seed": 20000, "count": 1}},
    "prompt": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": "red sphere"}},
    "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
}


def definition(name):
    written = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    (inside,) = written["definitions"]["subgraphs"]
    (node,) = written["nodes"]
    assert node["type"] == inside["id"]
    assert [slot["name"] for slot in node["inputs"]] == [slot["name"] for slot in inside["inputs"]]
    assert [slot["name"] for slot in node["outputs"]] == [slot["name"] for slot in inside["outputs"]]
    return node, inside


def unpacked(name, object_info, connected):
    """The nodes of a blueprint in the API format, these inputs connected, and what its outputs come from."""
    _, inside = definition(name)
    prompt, outputs = {}, {}
    for node in inside["nodes"]:
        slots = widget_slots(object_info[node["type"]]["input"], node["widgets_values"])
        values = dict(zip(slots, node["widgets_values"], strict=True))
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": values}
    for link in inside["links"]:
        origin = [str(link["origin_id"]), link["origin_slot"]]
        if link["origin_id"] == inside["inputNode"]["id"]:
            slot = inside["inputs"][link["origin_slot"]]
            assert link["id"] in slot["linkIds"]
            origin = connected.get(slot["name"])
        if link["target_id"] == inside["outputNode"]["id"]:
            outputs[inside["outputs"][link["target_slot"]]["name"]] = origin
            continue
        (node,) = (node for node in inside["nodes"] if node["id"] == link["target_id"])
        entry = node["inputs"][link["target_slot"]]
        assert (entry["link"], entry["type"]) == (link["id"], link["type"])
        if origin:
            prompt[str(node["id"])]["inputs"][entry["name"]] = origin
    return prompt, outputs


def test_server_offers_the_blueprints(server):
    offered = json.loads(server.get("/global_subgraphs"))

    ours = {
        entry["name"]: key
        for key, entry in offered.items()
        if entry["info"]["node_pack"] == "custom_nodes.inner-guidance"
    }
    assert sorted(ours) == NAMES == ["Depth lock", "Depth of an image", "SAG"]
    for name, key in ours.items():
        entry = json.loads(server.get(f"/global_subgraphs/{key}"))
        assert json.loads(entry["data"]) == json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_widgets_that_a_blueprint_shows_are_those_of_its_nodes(name, object_info):
    node, inside = definition(name)
    kinds = {str(inner["id"]): inner["type"] for inner in inside["nodes"]}

    assert node["properties"]["proxyWidgets"]
    for inner, widget in node["properties"]["proxyWidgets"]:
        declared = object_info[kinds[inner]]["input"]
        assert any(widget in group for group in declared.values())


@pytest.mark.parametrize("family", ["UNet", "transformer"])
@pytest.mark.parametrize("name", NAMES)
def test_a_blueprint_runs(name, family, server, object_info):
    """A UNet without the prompt for the depth, and a transformer, which needs it."""
    optional = {"positive"} if family == "UNet" else set()
    connected = {slot: origin for slot, origin in CONNECTED.items() if slot not in optional}
    inside, outputs = unpacked(name, object_info, connected)
    prompt = OTHERS | {"model": {"class_type": "InnerLoadDemoModel", "inputs": {"family": family}}} | inside
    if "MODEL" in outputs:
        sampled = {
            "model": outputs["MODEL"],
            "steps": 4,
            "positive": ["prompt", 0],
            "negative": ["prompt", 0],
        }
        sampled |= {"latent_image": ["latent", 0], "sampler_name": "euler", "scheduler": "karras", "seed": 1}
        prompt["sample"] = {"class_type": "KSampler", "inputs": sampled}
        prompt["decode"] = {
            "class_type": "VAEDecode",
            "inputs": {"samples": ["sample", 0], "vae": ["model", 2]},
        }
        outputs["image"] = ["decode", 0]
    prompt["show"] = {"class_type": "PreviewImage", "inputs": {"images": outputs["image"]}}

    (png,) = server.run(with_defaults(prompt, object_info))["show"]

    assert np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).std() > 8
