"""Depth Estimate on a record of Record Features: a picture a step, of the right run, without the model."""

from types import SimpleNamespace

import pytest
import torch

from inner_guidance.host.recording.records import Execution, FeatureRecord, FeatureStep, Run
from inner_guidance.nodes.depth_estimate import InnerDepthEstimate
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.depth_estimates import EightfoldVAE, estimate, hosted, latent
from inner_guidance.tests.support.largest_copy import LargestCopy
from inner_guidance.tests.support.node_defaults import execute

pytestmark = pytest.mark.oldest_host


def run_of(*depths, node_id="2", images=2):
    """A run with a flat depth of this value at each step; None is a step where none could be read."""
    steps = [
        FeatureStep(number, 1.0, {}, None if depth is None else torch.full((images, 1, 16, 24), depth).half())
        for number, depth in enumerate(depths)
    ]
    for step in steps:
        if step.depth is not None:
            step.depth[1:] += 0.1
    return Run(Execution("prompt", node_id), (images, 4, 16, 24), (128, 192), steps)


def test_a_record_is_a_picture_a_step_and_the_model_does_not_look_again():
    model = tiny.patcher()
    seen = tiny.watch(model)
    record = FeatureRecord([run_of(None, 0.25, 0.5)])
    unused = {"image": torch.rand(2, 64, 96, 3), "vae": EightfoldVAE()}

    picture, mask, depth = estimate(model, record=record, latent=latent(2, 4, 16, 24), style="raw")
    sized, _, _ = estimate(model, record=record, latent=latent(), style="raw", **unused)

    assert len(seen) == 0
    assert depth.shape == (4, 16, 24)
    assert depth.dtype == torch.float32
    assert (mask.shape, picture.shape) == ((4, 128, 192), (4, 128, 192, 3))
    of_each = torch.tensor([0.25, 0.35, 0.5, 0.6])  # the steps, in each the images of the batch
    torch.testing.assert_close(depth.mean(dim=(1, 2)), of_each, rtol=0, atol=1e-3)
    torch.testing.assert_close(picture.mean(dim=(1, 2, 3)), of_each, rtol=0, atol=1e-3)
    assert sized.shape == (4, 64, 96, 3)


def test_a_record_along_the_edges_of_its_images():
    run = run_of(0.25, 0.5)
    for step in run.steps:
        step.depth[..., 12:] += 0.3
    image = torch.zeros(2, 128, 192, 3)
    image[0, :, 88:] = 1  # its edge is not quite where the depth has it
    image[1, :, 104:] = 1

    _, mask, _ = estimate(record=FeatureRecord([run]), latent=latent(), image=image, enlarge="along edges")

    steepest = mask.mean(dim=1).diff(dim=1).argmax(dim=1)
    assert steepest.tolist() == [87, 103] * 2


def test_an_image_that_sets_the_size_is_not_copied_for_each_step():
    record, image = FeatureRecord([run_of(0.25, 0.5, 0.75)]), torch.rand(2, 256, 384, 3)

    with LargestCopy() as copies:
        estimate(record=record, latent=latent(), image=image)

    assert copies.elements == image.numel()


def on_the_canvas(nodes):
    """The node with the id 9 in a graph."""
    hidden = SimpleNamespace(unique_id="9", dynprompt=SimpleNamespace(get_node=nodes.__getitem__))
    return type("OnTheCanvas", (InnerDepthEstimate,), {"hidden": hidden})


def test_a_latent_that_was_not_sampled_is_warned_of(caplog):
    """An Empty Latent does not make the node wait for the sampler: it would show the run before."""
    empty = {"9": {"inputs": {"latent": ["5", 0]}}, "5": {"inputs": {"width": 512}}}
    decoded = {"9": {"inputs": {"latent": ["6", 0]}}, "6": {"inputs": {"samples": ["4", 0]}}}
    sampler = {"4": {"inputs": {"model": ["1", 0], "latent_image": ["5", 0]}}, "5": {"inputs": {}}}
    record = FeatureRecord([run_of(0.5, node_id="4", images=1)])

    for nodes in (decoded | sampler, empty):
        node = on_the_canvas(nodes)
        execute(node, model=tiny.patcher(), depth_head=hosted(), latent=latent(), record=record)

    (sentence,) = [r.getMessage() for r in caplog.records if "LATENT" in r.getMessage()]
    assert sentence.startswith("Record Features: the LATENT comes from no sampler that was recorded")


def test_the_latent_tells_which_samplers_run_it_is():
    node = on_the_canvas({"9": {"inputs": {"latent": ["4", 0]}}, "4": {"inputs": {"model": ["1", 0]}}})
    record = FeatureRecord([run_of(0.25), run_of(0.5, node_id="4", images=1), run_of(0.75, node_id="6")])

    _, _, depth = execute(node, model=tiny.patcher(), depth_head=hosted(), latent=latent(), record=record)

    assert torch.equal(depth, torch.full((1, 16, 24), 0.5))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"record": FeatureRecord([run_of(0.5)]), "latent": None}, "connect the LATENT of its sampler"),
        ({"record": FeatureRecord()}, "nothing is recorded. Connect its MODEL to a sampler"),
        (
            {"record": FeatureRecord([run_of(None)])},
            "no depth was recorded in this run. Connect the depth head to Record Features too",
        ),
        (
            {"record": FeatureRecord([run_of(0.5)]), "image": torch.rand(1, 64, 64, 3), "latent": latent()},
            "1 image cannot belong to 2 maps. Connect the decoded image",
        ),
    ],
)
def test_a_record_without_depth_says_what_to_connect(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        estimate(**given)
