"""What the host may take from its cache: it keeps outputs by the inputs of a node and of those before it."""

import asyncio
from types import SimpleNamespace

import pytest
from comfy_execution.caching import CacheKeySetInputSignature
from comfy_execution.graph import DynamicPrompt

import nodes as stock
from inner_guidance.nodes.depth_aware_guidance import InnerDepthAwareGuidance
from inner_guidance.nodes.record import InnerRecordAttention, InnerRecordFeatures


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
