"""Every workflow that the pack ships, in the running server."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inner_guidance.tools.api_twins import to_api

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.name for path in FOLDER.glob("*.json"))
TWINS = {
    path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("api/*.json"))
}
RUN_ANYWHERE = [
    name
    for name, prompt in TWINS.items()
    if any(node["class_type"] == "InnerLoadDemoModel" for node in prompt.values())
]
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


@pytest.mark.parametrize("name", sorted(set(TWINS) - set(RUN_ANYWHERE)))
def test_workflow_lacks_only_its_files(name, server):
    answer = server.queue(TWINS[name], client="validation")

    faults = [error for node in answer["node_errors"].values() for error in node["errors"]]
    assert faults
    for fault in faults:
        assert fault["type"] in MISSING, fault
        missing = str(fault["extra_info"].get("received_value", fault["details"]))
        assert missing.endswith((*MODEL_FILES, *PICTURES)), fault
