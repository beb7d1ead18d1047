"""The faults of the host's own SelfAttentionGuidance node in what it computes (7-11, 13-16, 23), none of
which ours has. Each test runs on ours and, as a strict expected failure that names the error it fails with,
on the host's, so it shows that it finds the fault. The list is docs/host_sag_faults.md.
"""

import comfy_extras.nodes_hypertile as hypertile
import comfy_extras.nodes_model_downscale as downscale
import pytest
import torch

from inner_guidance.tests.support import sag_reference as paper
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.sag_nodes import BLUR_SIGMA, THRESHOLD, fault, hosts_own, ours
from inner_guidance.tests.support.tiny_models import result_of

pytestmark = pytest.mark.oldest_host


def middle_attention(model):
    """attn1 of the middle block."""
    return model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1


def first_step(sag, model, latent=None, grid=(8, 8), blur_sigma=BLUR_SIGMA):
    """x_bar - x of the first step, and the paper's."""
    seen = tiny.watch(model)
    with paper.spy_on_attention(middle_attention(model)) as [calls]:
        tiny.sample(sag(model, blur_sigma=blur_sigma), latent, steps=1)
    sampler, extra = seen.passes
    q, k = calls[0]
    x, x0 = sampler.x[:1].double(), sampler.out[:1].double()
    size = x.shape[2:]
    mask = paper.nearest(paper.received(q[0], k[0], heads=4).view(grid), *size) > THRESHOLD
    return extra.x.double() - x, paper.degraded(x0, mask, blur_sigma) - x0


@pytest.mark.parametrize("sag", [ours, hosts_own])
def test_both_are_the_papers_in_the_simplest_case(sag):
    """So a test below that fails on the host's node fails for its fault."""
    change, expected = first_step(sag, tiny.patcher())

    torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-4)


@fault(AssertionError)
def test_fault_07_blur_sigma_zero(sag):
    """Without a blur nothing is degraded, so there is nothing to guide by."""
    assert torch.equal(tiny.sample(sag(tiny.patcher(), blur_sigma=0.0)), tiny.sample(tiny.patcher()))


@fault(AssertionError)
def test_fault_08_kernel_does_not_grow(sag):
    """The host's 9 taps are 3 sigma of a sigma of 1.5."""
    change, expected = first_step(
        sag, tiny.patcher(), torch.zeros(1, 4, 32, 32), grid=(16, 16), blur_sigma=3.0
    )

    torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-4)


@fault(AssertionError)
def test_fault_09_regional_prompts_take_the_last_map(sag):
    model = tiny.patcher()
    seen = tiny.watch(model)
    positive = tiny.prompt(0) + tiny.prompt(2, area=(8, 8, 4, 6), strength=0.7)
    with paper.spy_on_attention(middle_attention(model)) as [calls]:
        tiny.sample(sag(model), steps=1, positive=positive)
    assert seen.labels[:2] == [[1, 0], [1, 0]]

    # The host gives the negative the same area, and lets an area fade at its border.
    region = (slice(4, 12), slice(6, 14))
    fade = torch.full((8, 8), 0.7, dtype=torch.float64)
    fade[[0, -1]] *= 0.5
    fade[:, [0, -1]] *= 0.5
    received, x0 = torch.zeros(16, 16).double(), torch.zeros(4, 16, 16).double()
    weight = torch.zeros(16, 16).double()
    for forward, (q, k) in zip(seen.passes[:2], calls[:2], strict=True):
        whole = forward.x.shape[-1] == 16
        place, share = ((slice(None),) * 2, torch.ones(16, 16)) if whole else (region, fade)
        side = forward.x.shape[-1]
        token_map = paper.received(q[0], k[0], heads=4).view(side // 2, side // 2)
        received[place] += paper.nearest(token_map, side, side) * share
        x0[(slice(None), *place)] += forward.out[0].double() * share
        weight[place] += share
    x, x0 = next(p.x[0] for p in seen.passes if p.x.shape[-1] == 16).double(), x0 / weight

    x_bar = x + paper.degraded(x0, received / weight > THRESHOLD, BLUR_SIGMA) - x0

    extra = [p for p in seen.passes[2:] if p.x.shape[-1] == 16]
    torch.testing.assert_close(extra[0].x[0].double(), x_bar, rtol=1e-5, atol=1e-4)


def two_negatives(sag, model):
    """The x_bar of the first step with two negatives, and the paper's for the mean of their maps."""
    seen = tiny.watch(model)
    with paper.spy_on_attention(middle_attention(model)) as [calls]:
        tiny.sample(sag(model), steps=1, negative=tiny.prompt(1) + tiny.prompt(3))
    labels = [label for p in seen.passes for label in p.transformer_options["cond_or_uncond"]]
    rows = [(p, row) for p in seen.passes for row in range(len(p.x))]
    qk = [(q[row], k[row]) for q, k in calls for row in range(len(q))]
    negatives = [i for i, label in enumerate(labels[:3]) if label == 1]
    assert len(negatives) == 2

    received = sum(paper.received(*qk[i], heads=4).view(8, 8) for i in negatives) / 2
    x = rows[0][0].x[0].double()
    x0 = sum(rows[i][0].out[rows[i][1]].double() for i in negatives) / 2
    mask = paper.nearest(received, 16, 16) > THRESHOLD
    extra, row = rows[3]
    return extra.x[row].double(), x + paper.degraded(x0, mask, BLUR_SIGMA) - x0, seen


@fault(AssertionError)
def test_fault_10_only_the_first_negative_counts(sag):
    x_bar, expected, seen = two_negatives(sag, tiny.patcher())

    assert sorted(seen.labels[0]) == [0, 1, 1]
    torch.testing.assert_close(x_bar, expected, rtol=1e-5, atol=1e-4)


@fault(AssertionError)
def test_fault_11_chunked_batches(sag, monkeypatch):
    model = tiny.patcher()
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e30)

    x_bar, expected, seen = two_negatives(sag, model)

    assert [len(labels) for labels in seen.labels[:3]] == [1, 1, 1]
    torch.testing.assert_close(x_bar, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("factor", "latent", "grid"), [(1.5, (18, 10), (6, 4)), (3.0, (24, 8), (4, 2))])
@fault((AssertionError, TypeError))
def test_fault_13_map_size_is_guessed(sag, factor, latent, grid):
    """Kohya's Deep Shrink gives maps whose sides are not in the ratio of the latent's."""
    model = result_of(
        downscale.PatchModelAddDownscale.execute(
            tiny.patcher(), 1, factor, 0.0, 1.0, True, "bicubic", "bicubic"
        )
    )

    change, expected = first_step(sag, model, torch.zeros(1, 4, *latent), grid=grid)

    torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-4)


@fault((AssertionError, RuntimeError, TypeError))
def test_fault_14_hypertile_mixes_tiles(sag):
    """HyperTile lets a tile of queries see a strip of the keys, which are in raster order."""
    model = tiny.patcher()
    model = result_of(hypertile.HyperTile.execute(model, 32, 2, 1, False))
    seen = tiny.watch(model)
    with paper.spy_on_attention(middle_attention(model)) as [calls]:
        tiny.sample(sag(model), steps=1)
    sampler, extra = seen.passes
    q, k = calls[0]
    tiles = q.shape[0] // 2
    assert tiles > 1
    strips = [paper.received(q[i], strip, heads=4) for i, strip in enumerate(k[0].chunk(tiles))]
    mask = paper.nearest(torch.cat(strips).view(8, 8), 16, 16) > THRESHOLD

    x, x0 = sampler.x[:1].double(), sampler.out[:1].double()
    x_bar = x + paper.degraded(x0, mask, BLUR_SIGMA) - x0
    torch.testing.assert_close(extra.x[:1].double(), x_bar, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("latent", "grid"), [((4, 4), (2, 2)), ((2, 16), (1, 8)), ((4, 3), (2, 2))])
@fault((AssertionError, ValueError))
def test_fault_15_small_latents_get_no_guidance(sag, latent, grid):
    change, expected = first_step(sag, tiny.patcher(), torch.zeros(1, 4, *latent), grid=grid)

    assert expected.abs().max() > 0.1
    torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-4)


@fault(AssertionError)
def test_fault_16_flow_models_are_renoised_wrongly(sag):
    model = tiny.patcher(model_type="FLOW")
    seen = tiny.watch(model)
    with paper.spy_on_attention(middle_attention(model)) as [calls]:
        tiny.sample(sag(model), steps=3, scheduler="simple")
    sampler, extra = seen.passes[2:4]
    assert 0.2 < sampler.sigma < 0.8
    q, k = calls[2]
    x, x0 = sampler.x[:1].double(), sampler.out[:1].double()
    mask = paper.nearest(paper.received(q[0], k[0], heads=4).view(8, 8), 16, 16) > THRESHOLD

    x_bar = x + (1 - sampler.sigma) * (paper.degraded(x0, mask, BLUR_SIGMA) - x0)
    torch.testing.assert_close(extra.x.double(), x_bar, rtol=1e-5, atol=1e-4)


@fault(AssertionError)
def test_fault_23_unaware_of_the_denoise_mask(sag):
    model = tiny.patcher()
    seen = tiny.watch(model)
    keep = torch.zeros(1, 1, 16, 16)
    keep[..., 8:, :] = 1

    tiny.sample(sag(model), steps=1, noise_mask=keep)

    change = (seen.passes[1].x - seen.passes[0].x[:1]).abs().amax((0, 1))
    assert change[:8].max() < 1e-5
    assert change[8:].max() > 1
