"""What nodes of other packs do with a guided model."""

import pytest
import torch

from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.classifier_models import classifier_guided
from inner_guidance.tests.support.function_wrappers import wrapped
from inner_guidance.tests.support.recorded_runs import record_attention, record_features, steps_of

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


def forgetting(model, names):
    """The model with a wrapper that drops entries of a pass's transformer_options; None: all of it."""

    def wrapper(apply_model, args):
        c = dict(args["c"])
        options = c.pop("transformer_options")
        if names is not None:
            c["transformer_options"] = {name: v for name, v in options.items() if name not in names}
        return apply_model(args["input"], args["timestep"], **c)

    return wrapped(model, wrapper)


@pytest.mark.parametrize(
    "dropped", [["cond_or_uncond"], ["uuids"], ["cond_or_uncond", "uuids"]], ids="+".join
)
@pytest.mark.parametrize("node", ["SAG", "DAG"])
def test_guidance_does_not_need_the_hosts_labels(node, dropped):
    expected, found = (
        tiny.sample(NODES[node](forgetting(tiny.patcher(), names), 1), steps=2) for names in ((), dropped)
    )

    assert torch.equal(found, expected)
    tiny.assert_steered(found, tiny.sample(tiny.patcher(), steps=2))


@pytest.mark.parametrize("record", [record_attention, record_features])
def test_records_do_not_need_the_hosts_labels(record):
    found = []
    for model in (tiny.patcher(), forgetting(tiny.patcher(), ("cond_or_uncond", "uuids"))):
        recorded, of_run = record(model)
        tiny.sample(recorded, steps=2)
        found.append(steps_of(of_run))

    assert len(found[0]) == len(found[1]) > 0
    for expected, step in zip(*found, strict=True):
        torch.testing.assert_close(vars(step), vars(expected), rtol=0, atol=0)


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_without_any_options_nothing_happens_and_a_warning_says_so(node, caplog):
    model = forgetting(tiny.patcher(), None)

    assert torch.equal(tiny.sample(node(model, 1), steps=2), tiny.sample(model, steps=2))
    assert "has no effect" in caplog.text or "recorded nothing" in caplog.text


@pytest.mark.parametrize("node", ["SAG", "DAG", "Record Attention"])
def test_two_equal_prompts_without_labels_cannot_be_told_apart(node, caplog):
    model = forgetting(tiny.patcher(), ("cond_or_uncond", "uuids"))
    run = {"negative": tiny.prompt(0), "steps": 2}

    assert torch.equal(tiny.sample(NODES[node](model, 1), **run), tiny.sample(model, **run))
    assert "has no effect" in caplog.text or "recorded nothing" in caplog.text
