"""What an artist types in the node search finds the node."""

import pytest
from comfy_api.latest import io

from inner_guidance.nodes import NODES
from inner_guidance.tests.support.node_searches import SEARCHES

HAS_ALIASES = "search_aliases" in io.Schema.__dataclass_fields__


@pytest.mark.skipif(not HAS_ALIASES, reason="ComfyUI 0.9.2 has no search aliases")
@pytest.mark.parametrize(("typed", "node_id"), SEARCHES)
def test_search_finds_the_node(typed, node_id):
    node = next(node for node in NODES if node.define_schema().node_id == node_id)
    listed = node.GET_NODE_INFO_V1()

    names = [listed["name"], listed["display_name"], *listed["search_aliases"]]
    assert any(typed.lower() in name.lower() for name in names)


def test_every_node_is_searched_for():
    assert {node_id for _, node_id in SEARCHES} == {node.define_schema().node_id for node in NODES}


@pytest.mark.oldest_host
@pytest.mark.parametrize(
    ("acronym", "node_id"), [("SAG", "InnerSelfAttentionGuidance"), ("DAG", "InnerDepthAwareGuidance")]
)
def test_acronyms_are_in_the_names_that_every_version_searches(acronym, node_id):
    (node,) = [node for node in NODES if node.define_schema().node_id == node_id]
    assert acronym in node.define_schema().display_name
