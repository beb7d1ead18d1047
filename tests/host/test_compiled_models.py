"""Models behind TorchCompileModel: they are read and guided as uncompiled ones, whatever they ran before."""

import pytest
import torch

from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.classifier_models import classifier_guided
from inner_guidance.tests.support.compiled_models import compiled
from inner_guidance.tests.support.recorded_runs import record_attention, record_features, steps_of

pytestmark = pytest.mark.slow  # tracing takes seconds

HEAD = depth.readout_head()
NODES = {
    "plain": lambda model: model,
    "SAG": lambda model: tiny.guided(model, blocks="m0"),
    "SAG in the first step": lambda model: tiny.guided(model, blocks="m0", end_percent=0.1),
    "DAG": lambda model: depth.depth_guided(model, depth_head=HEAD),
    "Classifier Guidance": classifier_guided,
    "SAG + DAG": lambda model: depth.depth_guided(tiny.guided(model, blocks="m0"), depth_head=HEAD),
}
ORDERS = [
    [*NODES],
    ["SAG", "DAG", "plain"],
    ["DAG", "SAG", "Classifier Guidance", "plain"],
]


@pytest.fixture(autouse=True)
def nothing_compiled():
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("order", ORDERS, ids=", ".join)
def test_each_run_is_that_of_the_uncompiled_model(order):
    model, plain = compiled(tiny.patcher()), tiny.sample(tiny.patcher())

    for name in order:
        expected = tiny.sample(NODES[name](tiny.patcher()))
        if name != "plain":
            tiny.assert_steered(expected, plain)
        torch.testing.assert_close(tiny.sample(NODES[name](model)), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("record", [record_attention, record_features])
def test_the_record_is_that_of_the_uncompiled_model(record):
    model = compiled(tiny.patcher())
    tiny.sample(model)
    found = []
    for sampled in (tiny.patcher(), model):
        recorded, written = record(sampled, blocks="m0")
        tiny.sample(recorded)
        found.append(steps_of(written))

    assert len(found[0]) == len(found[1]) > 0
    for expected, step in zip(*found, strict=True):
        torch.testing.assert_close(vars(step), vars(expected), rtol=0, atol=0)


@pytest.mark.parametrize("key", ["diffusion_model", "diffusion_model.double_blocks.1"])
def test_a_transformer_is_guided_as_an_uncompiled_one(key):
    latent = torch.zeros(1, 16, 16, 16)
    uncompiled = tiny.patcher("flux", "FLUX")
    expected, plain = (tiny.sample(m, latent) for m in (tiny.guided(uncompiled), uncompiled))
    tiny.assert_steered(expected, plain)
    model = compiled(uncompiled, key)

    for guide, result in ((lambda m: m, plain), (tiny.guided, expected), (lambda m: m, plain)):
        torch.testing.assert_close(tiny.sample(guide(model), latent), result, rtol=1e-5, atol=1e-5)
