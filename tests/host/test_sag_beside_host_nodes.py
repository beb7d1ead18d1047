"""Self-Attention Guidance beside all nodes of the host that patch a model and need nothing but the model."""

import itertools
from functools import partial

import pytest

from inner_guidance.tests.support.extra_pass import (
    MODEL_TYPES,
    guidance_at_little_and_much_blur,
    sampled_behind,
)
from inner_guidance.tests.support.model_patching_nodes import behind, tried_nodes


def takes(kind, change):
    """Whether the node takes this kind of model, without any node of this pack."""
    try:
        sampled_behind(kind, change)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    return True


@pytest.mark.slow
def test_the_extra_pass_does_what_the_node_does_in_the_samplers(host):
    """On the kinds of model that the node takes."""
    nodes = tried_nodes(host)
    assert {"FreeU_V2", "HyperTile", "NAGuidance", "SkipLayerGuidanceDiTSimple"} <= nodes.keys()

    taken, leaks = set(), {}
    for (name, node), kind in itertools.product(nodes.items(), MODEL_TYPES):
        change = partial(behind, node, name)
        if takes(kind, change):
            taken.add(name)
            little, much = guidance_at_little_and_much_blur(kind, change)
            if not little < 0.03 * much:
                leaks[name, kind] = little, much

    assert taken == nodes.keys()
    assert leaks == {}
