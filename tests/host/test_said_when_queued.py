"""Inputs that are missing or do not fit are said when a prompt is queued, before any node runs."""

import asyncio

import execution
import pytest

import nodes as stock
from inner_guidance.nodes import NODES


def source(output):
    """A node of another pack with one output of this type."""
    return type(
        "Source", (), {"INPUT_TYPES": classmethod(lambda cls: {"required": {}}), "RETURN_TYPES": (output,)}
    )


@pytest.fixture
def queued(monkeypatch):
    """What the host says of a node when its prompt is queued: nothing, or sentences."""
    classes = {node.define_schema().node_id: node for node in NODES}

    def errors(node, connected, **values):
        graph = {"1": {"class_type": node, "inputs": dict(values)}}
        monkeypatch.setitem(stock.NODE_CLASS_MAPPINGS, node, classes[node])
        for name in connected:
            kind = classes[node].INPUT_TYPES()
            kind = (kind["required"] | kind["optional"])[name][0]
            kind = "COMBO" if isinstance(kind, list) else kind
            monkeypatch.setitem(stock.NODE_CLASS_MAPPINGS, kind, source(kind))
            graph[name] = {"class_type": kind, "inputs": {}}
            graph["1"]["inputs"][name] = [name, 0]
        valid, found, _ = asyncio.run(execution.validate_inputs("a prompt", graph, "1", {}))
        assert valid == (not found)
        return {error["details"].partition(" - ")[2] or error["message"] for error in found}

    return errors


MAPS = {
    "branch": "positive",
    "steps": "average",
    "blocks": "average",
    "words": "",
    "threshold": 1.0,
    "colours": "ember",
    "legend": True,
    "smooth": True,
    "opacity": 0.8,
    "lightest": 0.0,
    "prompt_number": 1,
}
CROSS = MAPS | {"attention": "cross"}
NEEDED = {
    "Attention Maps: to show cross-attention, connect clip and enter the prompt that the image was sampled "
    "with."
}


@pytest.mark.parametrize(
    ("connected", "values", "said"),
    [
        ([], {"prompt": "a cat"}, NEEDED),
        (["clip"], {"prompt": " "}, NEEDED),
        (["prompt"], {}, NEEDED),
        (["clip"], {"prompt": "a cat"}, set()),
        (["clip", "prompt"], {}, set()),
        ([], {"attention": "self", "prompt": ""}, set()),
        (
            ["clip"],
            {"attention": "none", "prompt": "a cat"},
            {"attention: there is no 'none'. Choose self, cross."},
        ),
    ],
)
def test_words_need_a_clip_and_a_prompt(queued, connected, values, said):
    assert queued("InnerAttentionMaps", ["record", "latent", *connected], **CROSS | values) == said


def test_the_kind_of_attention_may_come_from_another_node(queued):
    values = MAPS | {"prompt": ""}
    assert queued("InnerAttentionMaps", ["record", "latent", "attention"], **values) == set()


ESTIMATE = {"noise_level": 0.1, "ensemble": 1, "seed": 0, "style": "raw"}


@pytest.mark.parametrize(
    ("connected", "enlarge", "said"),
    [
        (
            [],
            "along edges",
            {"enlarge is 'along edges', but no image is connected: connect one, or choose 'smooth'."},
        ),
        (["image"], "along edges", set()),
        ([], "smooth", set()),
        ([], "sharp", {"enlarge: there is no 'sharp'. Choose smooth, along edges."}),
    ],
)
def test_edges_need_an_image(queued, connected, enlarge, said):
    connected = ["model", "depth_head", "latent", *connected]
    assert queued("InnerDepthEstimate", connected, enlarge=enlarge, **ESTIMATE) == said


TRAINING = {
    "architecture": "latent",
    "blocks": "auto",
    "steps": 1,
    "batch_size": 1,
    "learning_rate": 0.001,
    "seed": 0,
}


@pytest.mark.parametrize(("distances", "fits"), [({"near": 5.0, "far": 2.0}, False), ({"near": 5.0}, True)])
def test_near_is_below_far(queued, distances, fits):
    found = queued("InnerTrainDepthHead", ["model", "vae", "images", "depths"], **TRAINING, **distances)
    assert fits == (not found)
    assert all("near (5 m) must be above 0 and below far (2 m)" in sentence for sentence in found)


def test_near_may_come_from_another_node(queued):
    connected = ["model", "vae", "images", "depths", "near"]
    assert queued("InnerTrainDepthHead", connected, **TRAINING, far=0.5) == set()
