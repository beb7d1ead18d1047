"""Self-Attention Guidance on every shape of latent, batch and condition that the host accepts."""

import comfy_extras.nodes_differential_diffusion as differential_diffusion
import pytest
import torch

from inner_guidance.tests.support import sag_reference as paper
from inner_guidance.tests.support import tiny_models as tiny

pytestmark = pytest.mark.oldest_host

BLUR_SIGMA = 1.3


def halves(t):
    """(negative, positive) of a pass over both."""
    return t.double().chunk(2)


def received(q, k, grid, size):
    """The maps of a batch, at the size of the latent: (B, 1, *size)."""
    maps = [
        paper.nearest(paper.received(a, b, heads=4).view(*grid), *size) for a, b in zip(q, k, strict=True)
    ]
    return torch.stack(maps)[:, None]


def run(model, latent=None, attention=None, **kwargs):
    """The passes of a guided run of one step, and the q and k of each."""
    seen = tiny.watch(model)
    unet = model.model.diffusion_model
    with paper.spy_on_attention(attention or unet.middle_block[1].transformer_blocks[0].attn1) as [calls]:
        tiny.sample(tiny.guided(model, blur_sigma=BLUR_SIGMA), latent, steps=1, **kwargs)
    return seen.passes, calls


@pytest.mark.parametrize(
    "size", [(2, 3), (1, 9), (3, 5), (7, 7), (5, 16), (17, 33), (13, 8), (40, 6)], ids=str
)
def test_sizes(size):
    (sampler, extra), [(q, k), _] = run(tiny.patcher(), torch.zeros(1, 4, *size))
    (x, _), (x0, _) = halves(sampler.x), halves(sampler.out)

    mask = received(q[:1], k[:1], [-(-side // 2) for side in size], size) > paper.THRESHOLD

    torch.testing.assert_close(
        extra.x.double(), x + paper.degraded(x0, mask, BLUR_SIGMA) - x0, rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (2, 1)], ids=str)
def test_one_token_is_average_and_not_blurred(size):
    model = tiny.patcher()
    seen = tiny.watch(model)

    samples = tiny.sample(tiny.guided(model), torch.zeros(1, 4, *size))

    assert seen.labels == [[1, 0]] * 3
    assert torch.equal(samples, tiny.sample(tiny.patcher(), torch.zeros(1, 4, *size)))


@pytest.mark.parametrize(
    ("kind", "size"), [("sd15", (16, 16)), ("sd15", (9, 23)), ("sdxl", (16, 16)), ("sdxl", (33, 12))], ids=str
)
def test_full_depth_unets(kind, size):
    model = tiny.patcher(kind)
    seen = tiny.watch(model)

    samples = tiny.sample(tiny.guided(model, blocks="d0-d1,m0,u1-u3"), torch.zeros(1, 4, *size), steps=1)

    assert seen.labels == [[1, 0], [1]]
    tiny.assert_steered(samples, tiny.sample(tiny.patcher(kind), torch.zeros(1, 4, *size), steps=1))


def test_every_image_of_a_batch_has_its_own_mask():
    (sampler, extra), [(q, k), _] = run(tiny.patcher(), torch.zeros(3, 4, 16, 16))
    (x, _), (x0, _) = halves(sampler.x), halves(sampler.out)

    mask = received(q[:3], k[:3], (8, 8), (16, 16)) > paper.THRESHOLD

    assert not torch.equal(mask[0], mask[1])
    torch.testing.assert_close(
        extra.x.double(), x + paper.degraded(x0, mask, BLUR_SIGMA) - x0, rtol=1e-5, atol=1e-3
    )


def test_masked_negatives_are_blended_by_their_masks():
    left = torch.zeros(1, 128, 128)
    left[..., :64] = 1
    negative = tiny.prompt(1, mask=left, mask_strength=1.0) + tiny.prompt(3, mask=1 - left, mask_strength=0.5)

    (sampler, extra), [(q, k), _] = run(tiny.patcher(), negative=negative)

    assert sampler.transformer_options["cond_or_uncond"] == [1, 1, 0]  # the second negative comes first
    maps = received(q[:2], k[:2], (8, 8), (16, 16))
    x, outs = sampler.x[:1].double(), sampler.out.double()
    on_the_left = torch.arange(16) < 8
    x0 = torch.where(on_the_left, outs[1:2], outs[:1])
    mask = torch.where(on_the_left, maps[1:2], maps[:1]) > paper.THRESHOLD
    x_bar = x + paper.degraded(x0, mask, BLUR_SIGMA) - x0
    torch.testing.assert_close(extra.x[:1].double(), x_bar, rtol=1e-5, atol=1e-3)


def test_default_negative_gets_what_the_others_leave():
    """A default condition of the host's hook nodes fills the place that masks leave free."""
    left = torch.zeros(1, 128, 128)
    left[..., :64] = 1
    negative = tiny.prompt(1, mask=left, mask_strength=1.0) + tiny.prompt(3, default=True)

    (sampler, extra), [(q, k), _] = run(tiny.patcher(), negative=negative)

    rows = [i for i, label in enumerate(sampler.transformer_options["cond_or_uncond"]) if label == 1]
    maps, outs = received(q, k, (8, 8), (16, 16)), sampler.out.double()
    on_the_left = torch.arange(16) < 8
    candidates = []
    for masked, default in (rows, rows[::-1]):
        x0 = torch.where(on_the_left, outs[masked], outs[default])[None]
        mask = torch.where(on_the_left, maps[masked], maps[default])[None] > paper.THRESHOLD
        candidates.append(sampler.x[:1].double() + paper.degraded(x0, mask, BLUR_SIGMA) - x0)
    assert sum(torch.allclose(extra.x[:1].double(), x_bar, rtol=1e-5, atol=1e-3) for x_bar in candidates) == 1


def test_negative_that_covers_only_an_area():
    """Nothing is guided where there is no negative; the host's own estimate is 0 there."""
    negative = tiny.prompt(1, area=(8, 16, 0, 0))

    guided = tiny.sample(tiny.guided(tiny.patcher()), negative=negative, steps=1)
    plain = tiny.sample(tiny.patcher(), negative=negative, steps=1)

    assert torch.equal(guided[..., 8:, :], plain[..., 8:, :])
    tiny.assert_steered(guided[..., :8, :], plain[..., :8, :])


def test_inpainting_model_with_9_channels():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1

    (sampler, extra), _ = run(tiny.patcher("inpaint"), tiny.noise(1, 4, 16, 16, seed=3), noise_mask=mask)

    change = (extra.x - sampler.x[:1]).abs().amax((0, 1))
    inside = mask[0, 0] > 0
    assert change[inside].max() > 1
    assert change[~inside].max() < 1e-5


def test_differential_diffusion_has_a_mask_of_its_own_at_every_step():
    model = tiny.patcher()
    seen = tiny.watch(model)
    changed = differential_diffusion.DifferentialDiffusion.execute(model).result[0]
    gradient = torch.linspace(0, 1, 16).expand(1, 1, 16, 16).clone()

    tiny.sample(tiny.guided(changed, mask="global"), noise_mask=gradient, steps=4)

    widths = [
        ((extra.x - sampler.x[:1]).abs().amax((0, 1, 2)) > 1e-4).sum().item()
        for sampler, extra in zip(seen.passes[::2], seen.passes[1::2], strict=True)
    ]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_second_pass_at_another_size():
    """Hires fix: the same MODEL at two sizes, the second from the first's result."""
    model = tiny.guided(tiny.patcher())

    small = tiny.sample(model, torch.zeros(1, 4, 8, 8), steps=2)
    large = torch.nn.functional.interpolate(small, scale_factor=1.75)
    again = tiny.sample(model, large, steps=4, denoise=0.5)

    assert again.shape == (1, 4, 14, 14)
    assert not torch.equal(again, tiny.sample(tiny.patcher(), large, steps=4, denoise=0.5))
    assert torch.equal(again, tiny.sample(tiny.guided(tiny.patcher()), large, steps=4, denoise=0.5))


def test_video_unet_attends_to_the_image_not_to_the_frames():
    """SVD: frames in the batch, and attention over the frames under the same block name."""
    model = tiny.patcher("svd", "V_PREDICTION_EDM")
    block = model.model.diffusion_model.middle_block[1]
    latent = torch.zeros(4, 4, 4, 4)  # 4 frames of 2 x 2 tokens: both attentions see 4 tokens in 8 rows

    (sampler, extra), calls = run(model, latent, attention=block.transformer_blocks[0].attn1)

    assert len(calls) == 2
    q, k = calls[0]
    (x, _), (x0, _) = halves(sampler.x), halves(sampler.out)
    maps = [
        paper.nearest(paper.received(a, b, heads=4).view(2, 2), 4, 4)
        for a, b in zip(q[:4], k[:4], strict=True)
    ]
    mask = torch.stack(maps)[:, None] > paper.THRESHOLD
    torch.testing.assert_close(
        extra.x.double(), x + paper.degraded(x0, mask, BLUR_SIGMA) - x0, rtol=1e-4, atol=1e-2
    )


def test_context_windows_are_put_together():
    """5 images in windows 0-2 and 2-4: image 2 has the mean of two maps."""
    model = tiny.windowed(tiny.patcher())

    passes, calls = run(model, torch.zeros(5, 4, 16, 16))

    sampler = passes[:2]
    frames = [len(p.x) // 2 for p in sampler]
    total, counts = torch.zeros(5, 1, 16, 16).double(), torch.zeros(5, 1, 1, 1).double()
    for (q, k), n, indices in zip(calls, frames, ([0, 1, 2], [2, 3, 4]), strict=False):
        # the host may put one more frame before a window, and drops it
        total[indices] += received(q[:n], k[:n], (8, 8), (16, 16))[n - 3 :]
        counts[indices] += 1
    mask = total / counts > paper.THRESHOLD

    first = passes[2].x.double() - sampler[0].x[: frames[0]].double()
    changed = first.abs().amax(1, keepdim=True) > 1e-3
    assert torch.equal(changed, mask[:3])
