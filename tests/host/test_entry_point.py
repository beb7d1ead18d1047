"""The pack as the host's loader meets it, without the server."""

import asyncio

from comfy_api.latest import ComfyExtension

import inner_guidance
from inner_guidance.nodes import NODES


def test_entry_point_hands_over_every_node():
    extension = asyncio.run(inner_guidance.comfy_entrypoint())

    assert isinstance(extension, ComfyExtension)
    assert asyncio.run(extension.get_node_list()) == NODES


def test_node_ids_are_ours_and_unique():
    ids = [node.define_schema().node_id for node in NODES]

    assert len(ids) == len(set(ids))
    assert all(node_id.startswith("Inner") for node_id in ids)
