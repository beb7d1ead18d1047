"""Every family of transformers: attention, features and guidance on a tiny model of the host's own class."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from inner_guidance.host.depth.heads import HostedDepthHead
from inner_guidance.nodes.depth_estimate import InnerDepthEstimate
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.depth_models import depth_guided
from inner_guidance.tests.support.model_families import (
    FAMILIES,
    TEXT,
    assert_features,
    assert_received,
    depth_head,
    heads_after_tokens,
    patcher,
    record,
    sample,
)
from inner_guidance.tests.support.node_defaults import execute


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_recorded(name):
    """Attention received and given to the prompt, and features; the image stays bit-identical."""
    family = FAMILIES[name]

    attention, features, outputs, calls, samples = record(name)

    assert samples.isfinite().all()
    assert torch.equal(samples, sample(patcher(name), family))
    assert_received(attention, family, calls[family.call], family.start)
    assert_features(features, family, outputs[0], family.first)
    if family.prompt is None:
        assert not attention.prompt
        return
    call, start = family.prompt
    q, k = (heads_after_tokens(t[1]) for t in calls[call])
    text = 512 if name.startswith("flux2") else TEXT
    given = rec.softmax(q[family.start :][: torch.Size(family.grid).numel()], k, len(calls[call][0][0]))
    rec.assert_close_in_half(
        attention.prompt["positive", family.name, 0],
        given[:, start : start + text].T.reshape(1, text, *family.grid),
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_guidance_changes_the_image(name):
    family = FAMILIES[name]
    guided = patcher(name)
    seen = tiny.watch(guided)

    tiny.assert_steered(
        sample(tiny.guided(guided, blocks=family.name), family), sample(patcher(name), family)
    )
    assert seen.labels == [[1, 0], [1]]


trained_head = cache(depth_head)
OF_IMAGES = [name for name in FAMILIES if name not in ("wan video", "hunyuan15")]


@pytest.mark.parametrize("name", OF_IMAGES)
def test_depth_is_what_the_head_makes_of_the_tokens(name):
    family = FAMILIES[name]
    head, model = trained_head(name), patcher(name)
    outputs = []

    def keep(module, args, out):
        outputs.append((out if family.output is None else out[family.output]).clone())

    diffusion_model = model.get_model_object("diffusion_model")
    hook = diffusion_model.get_submodule(family.module).register_forward_hook(keep)
    read = []
    network = head.head.network.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    _, _, depth = execute(
        InnerDepthEstimate,
        model=model,
        depth_head=head,
        latent={"samples": tiny.noise(1, *family.shape)},
        ensemble=1,
        positive=tiny.prompt(0, **family.values),
    )
    hook.remove()
    network.remove()

    assert depth.shape == (1, *family.shape[-2:])
    assert list(head.head.network.taps) == ["b0", family.name]
    tokens = outputs[0][0].flatten(0, -2)[family.first :][: torch.Size(family.grid).numel()]
    assert torch.equal(read[0][family.name][0], tokens.T.unflatten(1, family.grid[-2:]))


@pytest.mark.parametrize("name", OF_IMAGES)
def test_depth_aware_guidance(name):
    family = FAMILIES[name]
    # With its calibration, nothing is to be mended: the sample is no worse than the images of its training.
    head = HostedDepthHead.of(replace(trained_head(name).head, calibration=None))
    guided = depth_guided(patcher(name), depth_head=head)

    tiny.assert_steered(sample(guided, family), sample(patcher(name), family))
