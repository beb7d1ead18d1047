"""Every workflow that the pack ships, in the running server."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from inner_guidance.demo.recogniser import PAIRS, RECOGNISER_FILE, Recogniser, recognise
from inner_guidance.tools.api_twins import to_api

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
DEMO_WEIGHTS = Path(__file__).resolve().parents[2] / "demo" / "weights"
NAMES = sorted(path.name for path in FOLDER.glob("*.json"))
TWINS = {
    path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("api/*.json"))
}
RUN_ANYWHERE = [
    name
    for name, prompt in TWINS.items()
    if any(node["class_type"] == "InnerLoadDemoModel" for node in prompt.values())
]
# Titles of outputs that are images of a prompt.
IMAGES = (
    "The image",
    "Without guidance",
    "With Depth-Aware Guidance",
    "With both guidances",
    "With the depth locked",
    "With the new prior",
)


def prompt_of(prompt):
    """The text of the node titled "Prompt", or nothing."""
    inputs = [node["inputs"] for node in prompt.values() if node["_meta"]["title"] == "Prompt"]
    return next((one["text"] if "text" in one else one["value"] for one in inputs), "")


PROMPTED = [name for name in RUN_ANYWHERE if prompt_of(TWINS[name])]
# What the host of a reader has and this one has not: downloads, and pictures in its input folder.
MODEL_FILES = (".safetensors", ".ckpt", ".pth", ".pt")
PICTURES = ("example.png", "depth_training")
MISSING = ("value_not_in_list", "custom_validation_failed")


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_every_workflow_has_its_twin_and_every_twin_its_workflow():
    assert list(TWINS) == NAMES
    assert RUN_ANYWHERE


@pytest.mark.parametrize("name", NAMES)
def test_twin_is_what_the_workflow_says(name, object_info):
    workflow = json.loads((FOLDER / name).read_text(encoding="utf-8"))

    assert to_api(workflow, object_info) == TWINS[name], "run `make workflows`"


@pytest.mark.parametrize("name", RUN_ANYWHERE)
def test_workflow_draws(name, drawn):
    images = drawn(name.removesuffix(".json"))

    savers = {node_id for node_id, node in TWINS[name].items() if node["class_type"] == "SaveImage"}
    assert savers <= set(images)
    for node_id, files in images.items():
        for png in files:
            assert pixels(png).std() > 8, f"node {node_id} made a flat picture"


def solids(text):
    """Numbers of the kinds of solids that a prompt names."""
    return [number for number, pair in enumerate(PAIRS) if " ".join(pair) in text]


@pytest.fixture(scope="module")
def recogniser():
    network = Recogniser().eval()
    network.load_state_dict(
        {name: w.float() for name, w in load_file(DEMO_WEIGHTS / RECOGNISER_FILE).items()}
    )
    return network


@pytest.mark.parametrize("name", PROMPTED)
def test_images_show_what_the_shipped_prompt_says(name, drawn, recogniser):
    """By a network that was trained on renders alone."""
    titles = {number: node["_meta"]["title"] for number, node in TWINS[name].items()}
    images = drawn(name.removesuffix(".json"))
    shown = {titles[node]: files[0] for node, files in images.items() if titles[node] in IMAGES}
    if "transformer" in name:  # the guided box of the demo transformer could be a cylinder
        shown.pop("With the depth locked")
    assert shown

    named = solids(prompt_of(TWINS[name]))
    for title, png in shown.items():
        seen = recognise(recogniser, torch.from_numpy(pixels(png).copy())[None]).logits["objects"][0]
        assert (seen[named] > 0).all(), title


@pytest.mark.parametrize("name", sorted(set(TWINS) - set(RUN_ANYWHERE)))
def test_workflow_lacks_only_its_files(name, server):
    answer = server.queue(TWINS[name], client="validation")

    faults = [error for node in answer["node_errors"].values() for error in node["errors"]]
    assert faults
    for fault in faults:
        assert fault["type"] in MISSING, fault
        missing = str(fault["extra_info"].get("received_value", fault["details"]))
        assert missing.endswith((*MODEL_FILES, *PICTURES)), fault
