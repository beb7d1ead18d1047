"""What the host takes from its cache after a user has copied a part of the graph in the page."""

import asyncio

import pytest
from comfy_execution.caching import CacheKeySetInputSignature
from comfy_execution.graph import DynamicPrompt

import nodes as stock
from inner_guidance.nodes import NODES

OURS = {node.define_schema().node_id: node for node in NODES}


class Unchanged:
    """No node of the graph says that its files have changed."""

    async def get(self, node_id):
        return False


def cache_keys(node):
    """Of a node and a sampler behind it, and of their copies."""
    graph = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}}}
    for number in ("2", "4"):
        sampler = str(int(number) + 1)
        graph[number] = {"class_type": node, "inputs": {"model": ["1", 0]}}
        graph[sampler] = {"class_type": "KSampler", "inputs": {"model": [number, 0], "seed": 0}}
    keys = CacheKeySetInputSignature(DynamicPrompt(graph), [], Unchanged())
    asyncio.run(keys.add_keys(list(graph)))
    return [(keys.get_data_key(patch), keys.get_data_key(sampler)) for patch, sampler in ("23", "45")]


@pytest.mark.parametrize("node", ["InnerDepthAwareGuidance", "InnerRecordAttention", "InnerRecordFeatures"])
def test_a_copy_runs_with_a_preview_and_a_record_of_its_own(node, monkeypatch):
    """From the cache it would have those of the first node, which show nothing of the copied sampler."""
    monkeypatch.setitem(stock.NODE_CLASS_MAPPINGS, node, OURS[node])
    (patch, sampler), (copied_patch, copied_sampler) = cache_keys(node)
    assert patch != copied_patch
    assert sampler != copied_sampler
    assert cache_keys(node) == [(patch, sampler), (copied_patch, copied_sampler)]


@pytest.mark.parametrize("node", ["InnerSelfAttentionGuidance", "InnerClassifierGuidance"])
def test_a_copy_of_what_shows_nothing_is_the_same(node, monkeypatch):
    monkeypatch.setitem(stock.NODE_CLASS_MAPPINGS, node, OURS[node])
    original, copied = cache_keys(node)
    assert original == copied
