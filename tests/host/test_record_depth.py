"""What Record Features writes down with a depth head: the depth that the sampler's passes tell."""

import pytest
import torch
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.patcher_extension import WrappersMP

from inner_guidance.host.taps.blocks import feature_blocks
from inner_guidance.host.taps.feature_tap import FeatureTap
from inner_guidance.nodes.depth_estimate import InnerDepthEstimate
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.depth_models import depth_guided, head, readout_head
from inner_guidance.tests.support.node_defaults import execute

pytestmark = pytest.mark.oldest_host

SHAPE = (2, 4, 16, 24)


def depth_of(kind, model_type, network, x, sigma, prompt):
    """What a head reads in a pass over x of its own, with one prompt."""
    model = tiny.patcher(kind, model_type).model
    unet, blocks = model.diffusion_model, feature_blocks(model.diffusion_model)
    names = {blocks[name][0]: name for name in network.taps if name != "time"}
    found = {}
    tap = FeatureTap(list(names), lambda layer, f: found.update({names[layer]: f.clone()}))
    time = model.model_sampling.timestep(torch.full((len(x),), sigma)).float()
    rows = {"c_crossattn": tiny.prompt(prompt)[0][0].expand(len(x), -1, -1)}
    if kind == "sdxl":
        rows["y"] = model.encode_adm(
            device=x.device, pooled_output=tiny.prompt(prompt)[0][1]["pooled_output"], height=128, width=192
        ).expand(len(x), -1)
    with tap.reading(unet, x, rows["c_crossattn"]):
        model.apply_model(x, torch.full((len(x),), sigma), **rows)
    found["time"] = unet.time_embed(timestep_embedding(time, unet.model_channels))
    return network(found, time, x.shape[-2:])


@pytest.mark.parametrize(
    ("kind", "make_head", "branch", "model_type"),
    [
        ("small", head, "positive", "V_PREDICTION"),
        ("sdxl", lambda: head("sdxl"), "negative", "EPS"),
        ("small", readout_head, "negative", "V_PREDICTION"),
    ],
)
def test_depth_is_that_of_the_samplers_pass_with_the_positive(kind, make_head, branch, model_type):
    model, depth_head = tiny.patcher(kind, model_type), make_head()
    seen = tiny.watch(model)
    watched, record = rec.record_features(model, branch=branch, depth_head=depth_head)

    samples = tiny.sample(watched, torch.zeros(SHAPE), steps=2)

    assert torch.equal(samples, tiny.sample(tiny.patcher(kind, model_type), torch.zeros(SHAPE), steps=2))
    steps = rec.steps_of(record)
    assert len(steps) == len(seen.passes) == 2
    for step, forward in zip(steps, seen.passes, strict=True):
        assert list(step.features) == [(branch, "m0")]
        # As many rows as in the sampler's pass: another number rounds otherwise, and heads can be steep.
        expected = depth_of(kind, model_type, depth_head.head.network, forward.x, forward.sigma, 0)[:2]
        torch.testing.assert_close(step.depth.float(), expected, rtol=2e-3, atol=1e-3)
        assert step.depth.std() > 1e-3
    assert not torch.allclose(steps[0].depth, steps[1].depth, atol=1e-3)


def first_depth(positive, **given):
    watched, record = rec.record_features(tiny.patcher(), depth_head=head(), **given)
    tiny.sample(watched, positive=positive, negative=tiny.prompt(1), steps=1)
    return rec.steps_of(record)[0].depth


def test_depth_is_of_the_first_prompt_that_covers_the_whole_image():
    left = tiny.prompt(5, area=(16, 8, 0, 0))
    all_of_it = tiny.prompt(0, area=(16, 16, 0, 0))
    masked = tiny.prompt(6, mask=torch.eye(16)[None])
    positive, negative = first_depth(tiny.prompt(0)), first_depth(tiny.prompt(1))

    close = {"rtol": 2e-3, "atol": 1e-3}
    torch.testing.assert_close(first_depth([*left, *masked, *tiny.prompt(0)]), positive, **close)
    torch.testing.assert_close(first_depth([*left, *all_of_it]), positive, **close)
    torch.testing.assert_close(first_depth([*left, *masked]), negative, **close)
    assert (positive - negative).abs().max() > 1e-2


def test_no_prompt_that_covers_the_whole_image_tells_no_depth():
    left = tiny.prompt(5, area=(16, 8, 0, 0))
    watched, record = rec.record_features(tiny.patcher(), depth_head=head())

    tiny.sample(watched, positive=left, negative=tiny.prompt(1, area=(16, 8, 0, 8)), steps=1)

    (step,) = rec.steps_of(record)
    assert step.depth is None
    assert step.features


def test_beside_guidance_by_the_same_head_and_another_recording():
    """Which evaluates the rows of a pass in two passes, one of them under gradients."""
    depth_head = head()
    model, first = rec.record_features(tiny.patcher(), depth_head=depth_head)
    model, second = rec.record_features(model, depth_head=depth_head)

    samples = tiny.sample(depth_guided(model, depth_head=depth_head), torch.zeros(SHAPE))

    alone = tiny.sample(depth_guided(tiny.patcher(), depth_head=depth_head), torch.zeros(SHAPE))
    assert torch.equal(samples, alone)
    assert len(rec.steps_of(first)) == len(rec.steps_of(second)) == 3
    for one, other in zip(rec.steps_of(first), rec.steps_of(second), strict=True):
        assert torch.equal(one.depth, other.depth)
        assert not one.depth.requires_grad


def test_blocks_that_another_node_skips_tell_no_depth():
    """As caches of deep blocks do."""
    watched, record = rec.record_features(tiny.patcher(), depth_head=head(), blocks="i0")
    passes = []

    def skip(executor, x, *args, **kwargs):
        passes.append(x)
        if len(passes) == 1:
            return executor(x, *args, **kwargs)
        executor.class_obj.input_blocks[0][0](x)
        return torch.zeros_like(x)

    watched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "skipping", skip)
    tiny.sample(watched, steps=2)

    steps = rec.steps_of(record)
    assert [list(step.features) for step in steps] == [[("positive", "i0")]] * 2
    assert [step.depth is None for step in steps] == [False, True]


def test_a_head_for_another_model_is_refused_before_any_sampling():
    sentence = "head_of_test reads 128 channels at o3 of .* but this model, .*, has 32 there"
    with pytest.raises(ValueError, match=sentence):
        rec.record_features(tiny.patcher("small"), depth_head=head("sd15"))


def test_depth_of_a_sampler_that_enlarges_the_latent_is_shown_at_its_last_size():
    sampler = pytest.importorskip("comfy_extras.nodes_advanced_samplers").SamplerLCMUpscale
    watched, record = rec.record_features(tiny.patcher(), depth_head=head())
    guider = tiny.BasicGuider(watched, tiny.prompt(0))
    sigmas = torch.tensor([14.0, 4.0, 1.0, 0.0])
    samples = guider.sample(
        tiny.noise(), torch.zeros(1, 4, 16, 16), sampler.execute(2.0, 1, "bilinear").result[0], sigmas
    )

    pictures, _, depth = execute(
        InnerDepthEstimate,
        model=tiny.patcher(),
        depth_head=head(),
        record=record,
        latent={"samples": samples},
    )

    steps = rec.steps_of(record)
    assert [step.depth.shape[-2:] for step in steps] == [(16, 16), (32, 32), (32, 32)]
    assert pictures.shape == (3, 256, 256, 3)
    assert torch.equal(depth[1:], torch.cat([step.depth.float()[:, 0] for step in steps[1:]]))
