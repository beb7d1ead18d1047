"""What the host may take from its cache: it keeps outputs by the inputs of a node and of those before it."""

import asyncio
from types import SimpleNamespace

import pytest
import torch
from comfy_execution.caching import CacheKeySetInputSignature
from comfy_execution.graph import DynamicPrompt

import nodes as stock
from inner_guidance.host.recording.executing import wired_run
from inner_guidance.nodes.depth_aware_guidance import InnerDepthAwareGuidance
from inner_guidance.nodes.record import InnerRecordAttention, InnerRecordFeatures
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny


async def unchanged(node_id):
    return False


@pytest.mark.parametrize("node", [InnerDepthAwareGuidance, InnerRecordAttention, InnerRecordFeatures])
def test_a_node_that_shows_pictures_of_a_run_is_not_taken_for_its_twin(node, monkeypatch):
    """The pictures would be on the twin, or, from an earlier graph, on whatever node has its number now."""
    name = node.define_schema().node_id
    monkeypatch.setitem(stock.NODE_CLASS_MAPPINGS, name, node)
    twin = {"class_type": name, "inputs": {"start_percent": 0.0}}
    keys = CacheKeySetInputSignature(
        DynamicPrompt({"5": twin, "9": twin}), [], SimpleNamespace(get=unchanged)
    )
    asyncio.run(keys.add_keys(["5", "9"]))
    assert keys.get_data_key("5") != keys.get_data_key("9")


def test_a_sampler_from_the_cache_has_the_run_of_the_node_that_sampled(said):
    """The host gives its output to every sampler with these inputs, which may have another id."""
    model, record = rec.record_attention(tiny.patcher())
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    results = []
    for seed, node_id in enumerate(["3", "4"]):
        with rec.executing(node_id):
            settings = (seed, 1, 4.0, "euler", "normal", tiny.prompt(0), tiny.prompt(1))
            results += stock.KSampler().sample(model, *settings, latent, 1.0)
    graph = {"20:3": {"inputs": {}}, "20:4": {"inputs": {}}}
    graph |= {f"map of {i}": {"inputs": {"latent": [f"20:{i}", 0]}} for i in (3, 4)}

    for i, result in zip((3, 4), results, strict=True):
        hidden = SimpleNamespace(
            unique_id=f"map of {i}", dynprompt=SimpleNamespace(get_node=graph.__getitem__)
        )
        assert wired_run(record, hidden, result).execution.node_id == str(i)
    assert said() == []
