"""The workflows for published transformers, with the demo transformer in place of their models."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "workflows" / "api"
NAMES = sorted(path.stem for path in FOLDER.glob("*Depth lock + SAG*.json"))
DEMO = {"class_type": "InnerLoadDemoModel", "inputs": {"family": "transformer"}}
SCENES = {"class_type": "InnerDemoScenes", "inputs": {"first_seed": 1_140_000, "count": 6, "size": 128}}
OTHER_SCENE = {"class_type": "InnerDemoScenes", "inputs": {"first_seed": 1_150_000, "count": 1, "size": 128}}
# What stands in for the first output of a node whose files are not here.
STAND_INS = {
    "UNETLoader": ["demo", 0],
    "CLIPLoader": ["demo", 1],
    "VAELoader": ["demo", 2],
    "LoadImageDataSetFromFolder": ["scenes", 0],
    "LoadDA3Model": None,
    "DA3Inference": None,
    "DA3Render": ["scenes", 1],
    "LoadImage": ["other scene", 0],
}
SAVED = ("Without guidance", "With the depth locked", "With the depth locked and Self-Attention Guidance")


def on_the_demo_transformer(prompt):
    """The graph with stand-ins for what is missing, and at a size and a number of steps that take seconds."""
    links = {number: STAND_INS[node["class_type"]] for number, node in prompt.items() if is_missing(node)}
    smaller = {"demo": DEMO, "scenes": SCENES, "other scene": OTHER_SCENE}
    for number, node in prompt.items():
        if is_missing(node):
            continue
        inputs = {
            name: links.get(value[0], value) if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        # A latent of FLUX.2 has half the side of the demo model's.
        side = 256 if node["class_type"] == "EmptyFlux2LatentImage" else 128
        inputs |= {name: side for name in ("width", "height") if name in inputs}
        if "steps" in inputs:
            inputs["steps"] = 30 if node["class_type"] == "InnerTrainDepthHead" else 4
        smaller[number] = node | {"inputs": inputs}
    return smaller


def is_missing(node):
    return node["class_type"] in STAND_INS


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_guidance_acts_in_the_graph(name, server):
    prompt = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    ids = {node["_meta"]["title"]: number for number, node in prompt.items()}

    images = server.run(on_the_demo_transformer(prompt))

    drawn = [
        np.asarray(Image.open(io.BytesIO(images[ids[title]][0])).convert("RGB")) / 255 for title in SAVED
    ]
    assert drawn[0].shape == (128, 128, 3)
    for number, one in enumerate(drawn):
        for other in drawn[:number]:
            assert np.abs(one - other).mean() > 0.003
    for title in ("Depth to keep", "Depth that came out", "How well it reads, at each noise level"):
        assert np.asarray(Image.open(io.BytesIO(images[ids[title]][0]))).std() > 8
