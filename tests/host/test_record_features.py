"""What Record Features writes down, and what both Record nodes show while a sampler runs."""

import logging
import types

import numpy as np
import pytest
import torch
from comfy_execution import progress

from inner_guidance.host import live_preview
from inner_guidance.host.taps.blocks import feature_blocks, layer_names, parse_blocks
from inner_guidance.host.taps.feature_tap import FeatureTap
from inner_guidance.nodes.record import InnerRecordAttention, InnerRecordFeatures
from inner_guidance.pictures.live import attention_picture, depth_picture, feature_picture
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.depth_models import head
from inner_guidance.tests.support.node_defaults import execute

pytestmark = pytest.mark.oldest_host


def features_of(model, blocks, x, sigma, prompts):
    """The features of one pass of the model over x and these prompts, by name: (B, C, *grid) each."""
    diffusion_model = model.model.diffusion_model
    available = feature_blocks(diffusion_model)
    names = layer_names(available)
    found = {}
    tap = FeatureTap(
        parse_blocks(blocks, available), lambda layer, f: found.update({names[layer]: f.clone()})
    )
    context = torch.cat([tiny.prompt(p)[0][0].expand(len(x), -1, -1) for p in prompts])
    x = torch.cat([x] * len(prompts))
    with tap.reading(diffusion_model, x, context):
        model.model.apply_model(x, torch.full((len(x),), sigma), c_crossattn=context)
    return found


@pytest.mark.parametrize(
    ("branch", "expected"), [("negative", {"negative"}), ("both", {"positive", "negative"})]
)
def test_features_are_those_of_the_samplers_pass(branch, expected):
    blocks = "i1,m0,r2-r3,o3-o5"
    model = tiny.patcher("sd15")
    seen = tiny.watch(model)
    watched, record = rec.record_features(model, blocks=blocks, branch=branch)

    samples = tiny.sample(watched, torch.zeros(2, 4, 16, 24), steps=2)

    assert torch.equal(samples, tiny.sample(tiny.patcher("sd15"), torch.zeros(2, 4, 16, 24), steps=2))
    steps = rec.steps_of(record)
    assert [step.number for step in steps] == [0, 1]
    for step, forward in zip(steps, seen.passes, strict=True):
        assert step.sigma == pytest.approx(forward.sigma)
        reference = features_of(tiny.patcher("sd15"), blocks, forward.x[:2], forward.sigma, [1, 0])
        assert set(step.features) == {(b, name) for b in expected for name in reference}
        for (its_branch, name), features in step.features.items():
            assert features.dtype == torch.float16
            rows = reference[name].chunk(2)[its_branch == "positive"]
            torch.testing.assert_close(features.float(), rows, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("kind", "model_type"), [("sd3", "FLOW"), ("flux", "FLUX"), ("qwen", "FLUX")])
def test_features_of_joint_models(kind, model_type):
    shape = (1, 16, 1, 16, 12) if kind == "qwen" else (1, 16, 16, 12)
    watched, record = rec.record_features(tiny.patcher(kind, model_type), blocks="b0-b2")

    samples = tiny.sample(watched, torch.zeros(*shape), steps=2)

    assert torch.equal(samples, tiny.sample(tiny.patcher(kind, model_type), torch.zeros(*shape), steps=2))
    for step in rec.steps_of(record):
        assert list(step.features) == [("positive", f"b{i}") for i in range(3)]
        assert all(f.shape[2:] == ((1, 8, 6) if kind == "qwen" else (8, 6)) for f in step.features.values())


def test_features_beyond_half_precision_are_as_large_as_it_holds():
    """Transformers have them."""
    model = tiny.patcher()
    model.set_model_input_block_patch(lambda h, options: h * 1e6 if options["block"][1] == 2 else h)
    watched, record = rec.record_features(model, blocks="i3")

    tiny.sample(watched, steps=1)

    (features,) = rec.steps_of(record)[0].features.values()
    assert features.isfinite().all()
    assert features.abs().max() == torch.finfo(torch.float16).max


def test_control_that_is_added_afterwards_is_not_in_the_features():
    """The host adds a ControlNet's output to what a block returned, in place."""
    control = torch.ones(1)

    def wrapper(apply_model, args):
        of_blocks = {"input": [None, None, control, None], "middle": [], "output": []}  # the last is i0's
        return apply_model(args["input"], args["timestep"], **args["c"] | {"control": of_blocks})

    watched, record = rec.record_features(tiny.patcher(), blocks="i0-i2")
    tiny.sample(watched, steps=1)
    plain = rec.steps_of(record)[0].features
    watched.set_model_unet_function_wrapper(wrapper)
    tiny.sample(watched, steps=1)
    controlled = rec.steps_of(record)[0].features

    same = [torch.equal(plain[key], controlled[key]) for key in plain]
    assert same == [True, True, False]


def test_areas_are_blended():
    left = tiny.prompt(5, area=(16, 8, 0, 0))
    watched, record = rec.record_features(tiny.patcher(), blocks="o3")
    alone, its_record = rec.record_features(tiny.patcher(), blocks="o3")

    tiny.sample(watched, positive=[*tiny.prompt(0), *left], steps=1)
    tiny.sample(alone, steps=1)

    features, expected = (rec.steps_of(r)[0].features["positive", "o3"].float() for r in (record, its_record))
    assert features.shape == expected.shape
    torch.testing.assert_close(features[..., 8:], expected[..., 8:], rtol=2e-3, atol=2e-3)
    assert (features[..., :8] - expected[..., :8]).abs().max() > 1e-2


def test_both_recordings_and_guidance_on_one_model():
    model, attention = rec.record_attention(tiny.patcher())
    model, features = rec.record_features(tiny.guided(model), blocks="o1")

    samples = tiny.sample(model)

    assert torch.equal(samples, tiny.sample(tiny.guided(tiny.patcher())))
    assert len(rec.steps_of(attention)) == len(rec.steps_of(features)) == 3


def test_a_negative_that_the_sampler_leaves_out_is_named(caplog):
    """At CFG 1, as distilled models are sampled."""
    watched, record = rec.record_features(tiny.patcher(), branch="negative")

    with caplog.at_level(logging.WARNING):
        tiny.sample(watched, cfg=1.0, steps=2)

    (said,) = [message for message in caplog.messages if "Record Features" in message]
    assert "no negative prompt was evaluated" in said
    with pytest.raises(ValueError, match="set branch to positive, or cfg above 1"):
        record.run_for(None, None)


def test_wrong_blocks_are_refused_before_any_sampling():
    with pytest.raises(ValueError, match=r"no block u0. It has i0-i3, m0, r0-r3, o0-o3"):
        rec.record_features(tiny.patcher(), blocks="u0")


# Preview


class Shown(progress.ProgressHandler):
    """What a browser would be sent."""

    def __init__(self):
        super().__init__("shown")
        self.updates, self.finished = [], []

    def update_handler(self, node_id, value, max_value, state, prompt_id, image=None):
        self.updates.append((node_id, value, max_value, image))

    def finish_handler(self, node_id, state, prompt_id):
        self.finished.append(node_id)


@pytest.fixture
def shown(monkeypatch):
    handler = Shown()
    registry = progress.ProgressRegistry("prompt", dynprompt=None)
    registry.register_handler(handler)
    monkeypatch.setattr(progress, "global_progress_registry", registry)
    return handler


def on_node(node_class, node_id):
    """The node as the host calls it: a class with the hidden inputs."""
    return type(node_class.__name__, (node_class,), {"hidden": types.SimpleNamespace(unique_id=node_id)})


def test_features_that_are_not_finite_are_left_out(shown, caplog):
    """A picture of them would stop the sampler with an error of linear algebra."""
    model = tiny.patcher()
    model.set_model_input_block_patch(lambda h, options: h * torch.nan if options["block"][1] == 2 else h)
    watched, record = execute(on_node(InnerRecordFeatures, "17"), model=model, blocks="i0, i3")

    samples = tiny.sample(watched)

    assert samples.isnan().all()
    # with the second step, the latent itself is not finite
    assert [list(step.features) for step in rec.steps_of(record)] == [[("positive", "i0")]]
    assert [message for message in caplog.messages if "recorded nothing of i3 at sigma" in message]
    assert len(shown.updates) == 1


@pytest.mark.parametrize("node_class", [InnerRecordAttention, InnerRecordFeatures])
def test_the_record_node_shows_every_step(monkeypatch, shown, node_class):
    monkeypatch.setattr(live_preview, "SECONDS_BETWEEN", 0)
    model, _ = execute(on_node(node_class, "17"), model=tiny.patcher())
    before = torch.get_rng_state()

    with rec.executing("3"):
        samples = tiny.sample(model, torch.zeros(2, 4, 16, 24), sampler="euler_ancestral")

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(
        samples, tiny.sample(tiny.patcher(), torch.zeros(2, 4, 16, 24), sampler="euler_ancestral")
    )
    assert [update[:3] for update in shown.updates] == [("17", i, 3) for i in (1, 2, 3)]
    for _, _, _, (image_type, image, limit) in shown.updates:
        assert (image_type, limit) == ("JPEG", None)
        assert image.size == (2 * 256, round(256 * 16 / 24))
        assert np.array(image).std() > 5
    assert shown.finished == ["17"]


def test_with_a_head_the_node_shows_the_depth(monkeypatch, shown):
    monkeypatch.setattr(live_preview, "SECONDS_BETWEEN", 0)
    model, record = execute(on_node(InnerRecordFeatures, "17"), model=tiny.patcher(), depth_head=head())

    tiny.sample(model, torch.zeros(2, 4, 16, 24))

    for update, step in zip(shown.updates, rec.steps_of(record), strict=True):
        _, image, _ = update[3]
        assert image.size == (2 * 256, round(256 * 16 / 24))
        pixels = torch.from_numpy(np.array(image)).float() / 255
        torch.testing.assert_close(pixels, depth_picture(step.depth.float()), rtol=0, atol=0.06)
    assert len(shown.updates) == 3


def test_between_two_pictures_time_passes(shown):
    """Only the first and the last of a run come sooner."""
    live = live_preview.LivePreview("17", 100)

    for done in range(1, 100):
        live.show(done, lambda: torch.rand(4, 4, 3))
    assert len(shown.updates) < 5
    live.show(100, lambda: torch.rand(4, 4, 3))
    assert shown.updates[-1][1] == 100


def test_without_preview_nothing_is_sent(shown):
    model, _ = execute(on_node(InnerRecordAttention, "17"), model=tiny.patcher(), preview=False)

    tiny.sample(model)

    assert (shown.updates, shown.finished) == ([], [])


def test_attention_in_the_picture_is_where_it_was_recorded():
    """The brightest quarter of the picture is the quarter that receives most."""
    received = torch.ones(1, 4, 6)
    received[:, 2:, 3:] = 3.0

    picture = attention_picture([received], (512, 768))

    assert picture.shape == (171, 256, 3)
    light = picture.mean(dim=-1)
    assert light[100:, 140:].mean() > 2 * light[:70, :110].mean()


def test_features_in_the_picture_are_told_apart():
    """Two kinds of tokens are two colours; videos show their frames; few channels are enough."""
    features = torch.zeros(1, 8, 4, 6)
    features[:, 0, :, 3:] = 5.0
    features += 0.01 * tiny.noise(1, 8, 4, 6)

    picture = feature_picture(features, (512, 768))

    left, right = picture[:, :100].flatten(0, 1), picture[:, 156:].flatten(0, 1)
    assert (left.mean(0) - right.mean(0)).abs().max() > 0.5
    assert feature_picture(tiny.noise(1, 8, 2, 4, 6), (64, 96)).shape == (171, 2 * 256, 3)
    assert feature_picture(tiny.noise(1, 2, 4, 6), (64, 96)).shape == (171, 256, 3)
    assert feature_picture(tiny.noise(1, 8, 1, 1), (64, 64)).shape == (256, 256, 3)


def test_depth_in_the_picture_is_as_bright_as_it_is_near():
    depth = torch.full((1, 1, 8, 12), 0.25)
    depth[..., 6:] = 0.75

    picture = depth_picture(depth.expand(6, -1, -1, -1))

    assert picture.shape == (171, 4 * 256, 3)
    assert torch.equal(picture[:, [20, 230]], torch.tensor([0.25, 0.75])[:, None].expand(171, 2, 3))
