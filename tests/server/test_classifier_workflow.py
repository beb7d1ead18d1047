"""The demo workflow that trains a classifier head: the head is saved, and steers towards its classes."""

import io
import json

import numpy as np
from PIL import Image

NAME = "11 Demo - Train a classifier head"


def test_a_new_head_steers_towards_its_classes_and_is_saved(drawn, server, root):
    twin = json.loads((root / "workflows" / "api" / f"{NAME}.json").read_text(encoding="utf-8"))
    images = {twin[node]["_meta"]["title"]: files[0] for node, files in drawn(NAME).items()}

    def coloured(title, *, green):
        """The share of pixels with much red, hardly any blue, and green or not."""
        red, greens, blue = np.moveaxis(np.asarray(Image.open(io.BytesIO(images[title]))) / 255, -1, 0)
        return ((red > 0.6) & (blue < 0.25) & ((greens > 0.5) if green else (greens < 0.25))).mean()

    for title, green in (("Towards red", False), ("Towards yellow", True)):
        assert coloured(title, green=green) > coloured("Without guidance", green=green) + 0.01
    names = server.object_info()["InnerLoadClassifierHead"]["input"]["required"]["name"][1]["options"]
    assert "demo_classifier_head_00001_.safetensors" in names
