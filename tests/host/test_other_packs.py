"""What nodes of other packs do with a guided model."""

import pytest

from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.classifier_models import classifier_guided
from inner_guidance.tests.support.recorded_runs import record_attention, record_features

pytestmark = pytest.mark.oldest_host

HEAD = depth.head()
NODES = {
    "SAG": lambda model, which: tiny.guided(model),
    "DAG": lambda model, which: depth.depth_guided(model, depth_head=HEAD, target_depth=depth.target(which)),
    "Classifier Guidance": lambda model, which: classifier_guided(model),
    "Record Attention": lambda model, which: record_attention(model)[0],
    "Record Features": lambda model, which: record_features(model)[0],
}


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_a_wrapper_is_found_in_a_list_or_a_set(node):
    """Nodes that sort or remove wrappers compare them: tensors in the settings must not matter."""
    first, second = (
        node(tiny.patcher(), which).wrappers["outer_sample"]["inner_guidance"][0] for which in (1, 2)
    )

    assert [first, second].index(second) == 1
    assert len({first, second, first}) == 2
