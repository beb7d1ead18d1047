"""Models behind TorchCompileModel: they are read and guided as uncompiled ones, whatever they ran before."""

import pytest
import torch

from inner_guidance.host.taps.uncompiled import uncompiled
from inner_guidance.nodes.depth_estimate import InnerDepthEstimate
from inner_guidance.nodes.train_classifier_head import InnerTrainClassifierHead
from inner_guidance.nodes.train_depth_head import InnerTrainDepthHead
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.classifier_models import classifier_guided
from inner_guidance.tests.support.compiled_models import compiled
from inner_guidance.tests.support.node_defaults import execute
from inner_guidance.tests.support.pixel_vae import PixelVAE
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


IMAGES = torch.rand(4, 128, 128, 3, generator=torch.Generator().manual_seed(0))
TRAINED = {"vae": PixelVAE(), "images": IMAGES, "blocks": "m0,o2", "steps": 3, "batch_size": 2}
OUTSIDE_OF_SAMPLING = {
    "Depth Estimate": lambda model: execute(
        InnerDepthEstimate,
        model=model,
        depth_head=HEAD,
        latent={"samples": tiny.noise(1, 4, 16, 16)},
        noise_level=0.1,
    )[2],
    "Train Depth Head": lambda model: weights_of(
        execute(InnerTrainDepthHead, model=model, depths=IMAGES, **TRAINED)
    ),
    "Train Classifier Head": lambda model: weights_of(
        execute(InnerTrainClassifierHead, model=model, class_names="a * 2\nb * 2", **TRAINED)
    ),
}


def weights_of(outputs):
    return outputs[0].head.network.state_dict()


@pytest.mark.parametrize("node", OUTSIDE_OF_SAMPLING)
def test_features_outside_of_sampling_are_those_of_the_uncompiled_model(node):
    model = compiled(tiny.patcher())
    tiny.sample(model)
    run = OUTSIDE_OF_SAMPLING[node]
    # another model must give another result
    other = tiny.patcher()
    other.set_model_input_block_patch(lambda h, options: 2 * h)
    expected, of_another = run(tiny.patcher()), run(other)

    for _ in range(2):
        torch.testing.assert_close(run(model), expected, rtol=0, atol=0)
        tiny.sample(model)

    with pytest.raises(AssertionError):
        torch.testing.assert_close(of_another, expected)


def test_a_pass_that_ends_leaves_those_of_other_threads_uncompiled():
    """With several GPUs, passes begin and end in any order."""
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    function = torch.compile(lambda x: x + 1, backend=backend)
    first, second = uncompiled(), uncompiled()

    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    function(torch.ones(1))
    assert compilations == []
    second.__exit__(None, None, None)
    function(torch.ones(1))
    assert len(compilations) == 1


@pytest.mark.parametrize("key", ["diffusion_model", "diffusion_model.double_blocks.1"])
def test_a_transformer_is_guided_as_an_uncompiled_one(key):
    latent = torch.zeros(1, 16, 16, 16)
    uncompiled = tiny.patcher("flux", "FLUX")
    expected, plain = (tiny.sample(m, latent) for m in (tiny.guided(uncompiled), uncompiled))
    tiny.assert_steered(expected, plain)
    model = compiled(uncompiled, key)

    for guide, result in ((lambda m: m, plain), (tiny.guided, expected), (lambda m: m, plain)):
        torch.testing.assert_close(tiny.sample(guide(model), latent), result, rtol=1e-5, atol=1e-5)
