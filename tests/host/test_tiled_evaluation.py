"""Nodes whose model_function_wrapper evaluates the latent in tiles, in another order, or changed."""

import re

import comfy.sample
import pytest
import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP

from inner_guidance.host.depth.estimation import estimate_depth
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import function_wrappers as wrappers
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import sag_reference as paper
from inner_guidance.tests.support import tiny_models as tiny

pytestmark = pytest.mark.oldest_host

LATENT = torch.zeros(1, 4, 16, 48)
APART = [(0, 0, 16, 16), (0, 16, 16, 16), (0, 32, 16, 16)]
OVERLAPPING = [(0, 0, 16, 24), (0, 16, 16, 16), (0, 24, 16, 24)]
SIGMA, SCALE, CFG = 1.3, 0.75, 4.0
NEGATIVE = 0  # the row of the negative in a pass over both branches
UNTRACEABLE = wrappers.untraceable()
WHOLE_LATENT_WANTED = {"tiles": wrappers.tiled(APART), "rolled": wrappers.rolled(4, 10)}


def received_over_latent(boxes, calls):
    """The attention received, from the queries and keys of each tile, by hand."""
    total, times = torch.zeros(16, 48, dtype=torch.float64), torch.zeros(16, 48)
    for box, (q, k) in zip(boxes, calls, strict=True):
        _, _, height, width = box
        received = paper.received(q, k, heads=4).view(height // 2, width // 2)
        total[wrappers.at(box)] += paper.nearest(received, height, width)
        times[wrappers.at(box)] += 1
    return total / times


def put_together(boxes, tiles):
    """What the wrapper makes of the tiles (4, height, width)."""
    total, times = torch.zeros(4, 16, 48, dtype=torch.float64), torch.zeros(16, 48)
    for box, tile in zip(boxes, tiles, strict=True):
        total[wrappers.at(box)] += tile.double()
        times[wrappers.at(box)] += 1
    return (total / times).unsqueeze(0)


@pytest.mark.parametrize(
    ("boxes", "per_pass"), [(APART, 1), (APART, 2), (APART, 3), (OVERLAPPING, 1)], ids=str
)
def test_self_attention_guidance_in_tiles(boxes, per_pass):
    model = tiny.patcher()
    seen = tiny.watch(model)
    attention = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1
    guided = tiny.guided(
        wrappers.wrapped(model, wrappers.tiled(boxes, per_pass)), scale=SCALE, blur_sigma=SIGMA
    )
    with paper.spy_on_attention(attention) as (calls,):
        denoised = tiny.first_denoised(guided, latent=LATENT, cfg=CFG)

    both, own = seen.passes[: len(seen) // 2], seen.extra
    assert len(own) == len(both)
    tiles, own_tiles = ([(p, 2 * i) for p in half for i in range(len(p.x) // 2)] for half in (both, own))
    x = put_together(boxes, [p.x[row] for p, row in tiles])
    x0 = put_together(boxes, [p.out[row + NEGATIVE] for p, row in tiles])
    positive = put_together(boxes, [p.out[row + 1 - NEGATIVE] for p, row in tiles])
    projected = [
        (q[2 * i + NEGATIVE], k[2 * i + NEGATIVE]) for q, k in calls[: len(both)] for i in range(len(q) // 2)
    ]
    mask = received_over_latent(boxes, projected) > 1
    assert 60 < mask.sum() < 708
    x0_bar = paper.degraded(x0, mask, SIGMA)
    x_bar = x + x0_bar - x0
    for box, (p, row) in zip(boxes, own_tiles, strict=True):
        given = p.x[row + NEGATIVE].double()
        torch.testing.assert_close(given, x_bar[0][wrappers.at(box)], rtol=1e-5, atol=1e-4)

    d_bar = put_together(boxes, [p.out[row + NEGATIVE] for p, row in own_tiles])
    expected = x0 + CFG * (positive - x0) + SCALE * (x0_bar - d_bar)
    torch.testing.assert_close(denoised, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize(("boxes", "per_pass"), [(APART, 1), (APART, 2), (OVERLAPPING, 1)], ids=str)
def test_attention_is_recorded_where_the_tiles_are(boxes, per_pass):
    model = tiny.patcher()
    attention = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1
    watched, record = rec.record_attention(
        wrappers.wrapped(model, wrappers.tiled(boxes, per_pass)), prompt=False
    )
    with paper.spy_on_attention(attention) as (calls,):
        tiny.sample(watched, LATENT, steps=1)

    (step,) = rec.steps_of(record)
    for branch, row in (("negative", NEGATIVE), ("positive", 1 - NEGATIVE)):
        projected = [(q[2 * i + row], k[2 * i + row]) for q, k in calls for i in range(len(q) // 2)]
        expected = received_over_latent(boxes, projected)[::2, ::2].unsqueeze(0)
        rec.assert_close_in_half(step.received[branch, "m0.0"], expected)


def first_step_of(model, noise):
    """One step of a run that begins with this noise."""
    comfy.sample.sample(
        model, noise, 1, CFG, "euler", "normal", tiny.prompt(0), tiny.prompt(1), torch.zeros_like(noise)
    )


def test_features_and_depth_are_recorded_where_the_tiles_are():
    """Each tile is what a run of its own would record."""
    model = wrappers.wrapped(tiny.patcher(), wrappers.tiled(APART))
    watched, record = rec.record_features(model, blocks="o2", depth_head=depth.head())
    noise = tiny.noise(*LATENT.shape)
    first_step_of(watched, noise)

    (step,) = rec.steps_of(record)
    for box in APART:
        watched, its_record = rec.record_features(tiny.patcher(), blocks="o2", depth_head=depth.head())
        first_step_of(watched, noise[wrappers.at(box)])
        (alone,) = rec.steps_of(its_record)
        of_tile = step.features["positive", "o2"][wrappers.at(box)]
        rec.assert_close_in_half(of_tile, alone.features["positive", "o2"])
        rec.assert_close_in_half(step.depth[wrappers.at(box)], alone.depth)


def test_a_rolled_latent():
    """The attention is that of the rolled latent, at the place where it came from."""
    model = tiny.patcher()
    attention = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1
    watched, record = rec.record_attention(wrappers.wrapped(model, wrappers.rolled(4, 10)), prompt=False)
    with paper.spy_on_attention(attention) as (calls,):
        tiny.sample(watched, LATENT, steps=1)

    (step,), [(q, k)] = rec.steps_of(record), calls
    expected = paper.received(q[NEGATIVE], k[NEGATIVE], heads=4).view(8, 24).roll((-2, -5), (0, 1))
    rec.assert_close_in_half(step.received["negative", "m0.0"], expected.unsqueeze(0))


@pytest.mark.parametrize(
    "order", [[2, 3, 0, 1], [1, 0, 3, 2], [3, 2, 1, 0]], ids=["branches", "images", "both"]
)
def test_reordered_rows(order):
    """The guidance and the record are those of the same rows in the host's order."""
    latent = torch.zeros(2, 4, 16, 16)

    def run(model):
        watched, record = rec.record_attention(tiny.guided(model))
        denoised = tiny.first_denoised(watched, latent=latent)
        return denoised, rec.steps_of(record)[0]

    plain = tiny.first_denoised(tiny.patcher(), latent=latent)
    expected, its_step = run(tiny.patcher())
    denoised, step = run(wrappers.wrapped(tiny.patcher(), wrappers.reordered(order)))

    assert (expected - plain).abs().max() > 1
    torch.testing.assert_close(denoised, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))
    for key, received in its_step.received.items():
        rec.assert_close_in_half(step.received[key], received)
    for key, given in its_step.prompt.items():
        rec.assert_close_in_half(step.prompt[key], given)


def test_a_wrapper_that_changes_nothing_is_no_wrapper():
    """Bit for bit; but beside a wrapper SAG's extra pass has both prompts, and batches of two sizes round."""
    untouched = wrappers.through(torch.clone, torch.clone)
    for guide in (tiny.guided, depth.depth_guided):
        expected = tiny.sample(guide(tiny.patcher()), steps=1)
        model = guide(wrappers.wrapped(tiny.patcher(), untouched))
        atol = 0 if guide is depth.depth_guided else 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(tiny.sample(model, steps=1), expected, rtol=0, atol=atol)


def everything_on(model):
    """All that reads a pass, on one model: the two guidances and the two recorders, and their records."""
    watched, attention = rec.record_attention(depth.depth_guided(tiny.guided(model)))
    watched, features = rec.record_features(watched, depth_head=depth.head())
    return watched, attention, features


def warned(caplog):
    """Who has warned, in alphabetical order: a name for each warning. All say that the rows are changed.

    The host may complain meanwhile of the models of other tests.
    """
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    messages = [message for message in messages if "memory leak" not in message]
    assert all("another node evaluates the latent" in message for message in messages)
    return sorted(re.split(" has | recorded ", message)[0] for message in messages)


@pytest.mark.parametrize("wrapper", UNTRACEABLE.values(), ids=UNTRACEABLE)
def test_rows_that_cannot_be_traced(wrapper, caplog):
    """Nothing is guided or recorded, the picture is the one without this pack, and each node says so once."""
    model = wrappers.wrapped(tiny.patcher(), wrapper)
    watched, attention, features = everything_on(model)

    assert torch.equal(tiny.sample(watched, LATENT, steps=2), tiny.sample(model, LATENT, steps=2))
    assert rec.steps_of(attention) == rec.steps_of(features) == []
    assert warned(caplog) == [
        "Depth-Aware Guidance",
        "Record Attention",
        "Record Features",
        "Self-Attention Guidance",
    ]


@pytest.mark.parametrize("wrapper", WHOLE_LATENT_WANTED.values(), ids=WHOLE_LATENT_WANTED)
def test_depth_aware_guidance_takes_the_whole_latent_only(wrapper, caplog):
    """The depth of a tile is not that of the picture."""
    model = wrappers.wrapped(tiny.patcher(), wrapper)

    guided = tiny.sample(depth.depth_guided(model), LATENT, steps=2)
    assert torch.equal(guided, tiny.sample(model, LATENT, steps=2))
    assert warned(caplog) == ["Depth-Aware Guidance"]


@pytest.mark.parametrize(
    "wrapper",
    [*UNTRACEABLE.values(), *WHOLE_LATENT_WANTED.values()],
    ids=[*UNTRACEABLE, *WHOLE_LATENT_WANTED],
)
def test_depth_estimate_names_what_is_in_its_way(wrapper):
    model = wrappers.wrapped(tiny.patcher(), wrapper)

    with pytest.raises(ValueError, match="a node on it evaluates the latent in tiles or changes it before"):
        estimate_depth(model, depth.head(), tiny.noise(2, 4, 16, 48), 0.1, 2, seed=0)


WITHIN_A_PASS = {
    "cropped": (lambda x: x[..., 8:40], lambda out: F.pad(out, (8, 8))),
    "resized": (lambda x: wrappers.resize(x, 8, 24), lambda out: wrappers.resize(out, 16, 48)),
    "rolled": (lambda x: x.roll(8, -1), lambda out: out.roll(-8, -1)),
}


def within_a_pass(change, back):
    """A tiny model with a DIFFUSION_MODEL wrapper, which the host calls behind all that reads the latent."""
    model = tiny.patcher()
    model.add_wrapper_with_key(
        WrappersMP.DIFFUSION_MODEL,
        "changes",
        lambda executor, x, *args, **kwargs: back(executor(change(x), *args, **kwargs)),
    )
    return model


@pytest.mark.parametrize("changes", WITHIN_A_PASS.values(), ids=WITHIN_A_PASS)
def test_a_latent_that_is_changed_within_a_pass(changes, caplog):
    model = within_a_pass(*changes)
    watched, attention, features = everything_on(model)

    plain = tiny.sample(model, LATENT, steps=2)
    torch.testing.assert_close(
        tiny.sample(watched, LATENT, steps=2), plain, rtol=0, atol=1e-3 * plain.abs().max()
    )
    assert rec.steps_of(attention) == rec.steps_of(features) == []
    assert len(warned(caplog)) == 4
    with pytest.raises(ValueError, match="a node on it evaluates the latent in tiles or changes it before"):
        estimate_depth(model, depth.head(), tiny.noise(2, 4, 16, 48), 0.1, 2, seed=0)


def test_a_wrapper_within_a_pass_that_leaves_the_latent_as_it_is():
    for guide in (tiny.guided, depth.depth_guided):
        guided = tiny.sample(guide(within_a_pass(torch.clone, torch.clone)), LATENT, steps=1)
        expected, plain = (
            tiny.sample(guide(tiny.patcher()), LATENT, steps=1),
            tiny.sample(tiny.patcher(), LATENT, steps=1),
        )
        torch.testing.assert_close(guided, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
        tiny.assert_steered(guided, plain)


def crop_by_crop(executor, model, conds, x_in, timestep, model_options):
    """A CALC_COND_BATCH wrapper that evaluates three crops of the latent, each like a latent of its own."""
    parts = [executor(model, conds, x, timestep, model_options) for x in x_in.split(16, dim=-1)]
    return [torch.cat(part, dim=-1) for part in zip(*parts, strict=True)]


def test_crops_that_are_evaluated_one_by_one(caplog):
    model = tiny.patcher()
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "crops", crop_by_crop)
    watched, attention, features = everything_on(model)

    assert torch.equal(tiny.sample(watched, LATENT, steps=2), tiny.sample(model, LATENT, steps=2))
    assert rec.steps_of(attention) == rec.steps_of(features) == []
    assert len(warned(caplog)) == 4
