"""One evaluation of the node in the host's sampler, against the paper in float64."""

import pytest
import torch

from inner_guidance.tests.support import sag_reference as paper
from inner_guidance.tests.support import tiny_models as tiny

pytestmark = pytest.mark.oldest_host

SETTINGS = {"scale": 0.75, "blur_sigma": 1.3, "threshold": 1.0, "blocks": "m0"}


def one_evaluation(kind="small", model_type="EPS", attentions=None, latent=None, step=0, **settings):
    """The sampler's pass, our pass, the queries and keys of both, and the denoised result of a step."""
    model = tiny.patcher(kind, model_type)
    unet = model.model.diffusion_model
    attentions = attentions(unet) if attentions else [unet.middle_block[1].transformer_blocks[0].attn1]
    seen = tiny.watch(model)
    denoised = []
    with paper.spy_on_attention(*attentions) as calls:
        tiny.sample(
            tiny.guided(model, **SETTINGS | settings),
            latent,
            callback=lambda i, x0, x, total: denoised.append(x0.clone()),
        )
    sampler, extra = seen.passes[2 * step : 2 * step + 2]
    return sampler, extra, [layer[2 * step] for layer in calls], denoised[step]


def halves(t):
    """(negative, positive) of a pass over both."""
    return t.double().chunk(2)


def signal_and_b2(model_type, sigma):
    """a_t and b^2 of the parametrisations, from their definitions."""
    if model_type == "FLOW":
        return 1 - sigma, sigma
    if model_type == "FLOW_COSMOS":  # x = x_t / (1 - t)
        return 1.0, sigma / (1 + sigma)
    data = 0.5 if model_type == "V_PREDICTION_EDM" else 1.0
    return 1.0, sigma**2 / (sigma**2 + data**2)


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("space", ["eps", "v"])
@pytest.mark.parametrize("model_type", ["EPS", "V_PREDICTION", "V_PREDICTION_EDM", "FLOW", "FLOW_COSMOS"])
def test_a_step_is_the_papers(model_type, space, step):
    sampler, extra, [(q, k)], denoised = one_evaluation(model_type=model_type, space=space, step=step)
    x, _ = halves(sampler.x)
    x0, positive = halves(sampler.out)
    a, b2 = signal_and_b2(model_type, sampler.sigma)

    received = paper.received(q[0], k[0], heads=4).view(8, 8)
    mask = paper.nearest(received, 16, 16) > 1
    assert 20 < mask.sum() < 236
    x0_bar = paper.degraded(x0, mask, SETTINGS["blur_sigma"])
    x_bar = x + a * (x0_bar - x0)
    torch.testing.assert_close(extra.x.double(), x_bar, rtol=1e-5, atol=1e-5)

    difference = x0_bar - extra.out.double()
    if space == "v":
        difference = difference - b2 * (x0_bar - x0)
    expected = x0 + 4.0 * (positive - x0) + SETTINGS["scale"] * difference
    torch.testing.assert_close(denoised.double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


def test_the_middle_of_sdxl_averages_its_transformers():
    sampler, extra, calls, _ = one_evaluation(
        "sdxl",
        attentions=lambda unet: [t.attn1 for t in unet.middle_block[1].transformer_blocks],
        latent=torch.zeros(1, 4, 32, 24),
    )
    x0, _ = halves(sampler.out)

    maps = [paper.received(q[0], k[0], heads=8).view(8, 6) for q, k in calls]
    mask = paper.nearest(sum(maps) / 2, 32, 24) > 1

    torch.testing.assert_close(
        extra.x.double(),
        halves(sampler.x)[0] + paper.degraded(x0, mask, SETTINGS["blur_sigma"]) - x0,
        rtol=1e-5,
        atol=1e-4,
    )


def test_layers_of_two_resolutions_are_averaged_on_the_finer_grid():
    sampler, extra, [(q, k), (fine_q, fine_k)], _ = one_evaluation(
        blocks="m0,u3",
        attentions=lambda unet: [
            unet.middle_block[1].transformer_blocks[0].attn1,
            unet.output_blocks[3][1].transformer_blocks[0].attn1,
        ],
    )
    x0, _ = halves(sampler.out)

    coarse = paper.received(q[0], k[0], heads=4).view(8, 8)
    fine = paper.received(fine_q[0], fine_k[0], heads=4).view(16, 16)
    mask = (paper.nearest(coarse, 16, 16) + fine) / 2 > 1

    x_bar = halves(sampler.x)[0] + paper.degraded(x0, mask, SETTINGS["blur_sigma"]) - x0
    torch.testing.assert_close(extra.x.double(), x_bar, rtol=1e-5, atol=1e-4)


def test_threshold():
    sampler, extra, [(q, k)], _ = one_evaluation(threshold=1.3)
    x0, _ = halves(sampler.out)

    received = paper.received(q[0], k[0], heads=4).view(8, 8)
    mask = paper.nearest(received, 16, 16) > 1.3
    assert mask.sum() < (paper.nearest(received, 16, 16) > 1).sum()

    x_bar = halves(sampler.x)[0] + paper.degraded(x0, mask, SETTINGS["blur_sigma"]) - x0
    torch.testing.assert_close(extra.x.double(), x_bar, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mask", ["global", "high frequency", "random"])
def test_ablation_masks(mask):
    sampler, extra, [(q, k)], _ = one_evaluation(mask=mask)
    x0, _ = halves(sampler.out)
    received = paper.received(q[0], k[0], heads=4).view(8, 8)
    attention = paper.nearest(received, 16, 16) > 1

    blurred = (extra.x.double() - halves(sampler.x)[0]).abs().amax(1)[0] > 1e-3  # where x_bar differs from x

    if mask == "global":
        assert blurred.all()
        return
    assert blurred.sum() == attention.sum()
    assert not torch.equal(blurred, attention)
    if mask == "high frequency":
        change = (paper.blur(x0, SETTINGS["blur_sigma"]) - x0).square().sum(1)[0]
        assert change[blurred].min() >= change[~blurred].max()


@pytest.mark.parametrize(
    ("branch", "cfg", "expected"),
    [
        ("auto", 4.0, [[1, 0], [1]]),
        ("negative", 4.0, [[1, 0], [1]]),
        ("positive", 4.0, [[1, 0], [0]]),
        ("auto", 1.0, [[0], [0]]),
        ("positive", 1.0, [[0], [0]]),
        ("negative", 1.0, [[1, 0], [1]]),
    ],
)
def test_branches(branch, cfg, expected):
    """Mask, estimate and second pass are of one branch; cfg 1 is cheap unless the negative is asked for."""
    model = tiny.patcher()
    seen = tiny.watch(model)
    attention = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1
    denoised = []
    with paper.spy_on_attention(attention) as [calls]:
        tiny.sample(
            tiny.guided(model, branch=branch, **SETTINGS),
            cfg=cfg,
            steps=1,
            callback=lambda i, x0, x, total: denoised.append(x0.double()),
        )

    assert seen.labels == expected
    sampler, extra = seen.passes
    row = expected[0].index(expected[1][0])
    (q, k) = calls[0]
    x, x0 = sampler.x[row : row + 1].double(), sampler.out[row : row + 1].double()
    mask = paper.nearest(paper.received(q[row], k[row], heads=4).view(8, 8), 16, 16) > 1
    x0_bar = paper.degraded(x0, mask, SETTINGS["blur_sigma"])
    torch.testing.assert_close(extra.x.double(), x + x0_bar - x0, rtol=1e-5, atol=1e-4)

    positive, base = sampler.out[-1:].double(), sampler.out[:1].double()
    expected_result = base + cfg * (positive - base) if cfg != 1 else positive
    expected_result = expected_result + SETTINGS["scale"] * (x0_bar - extra.out.double())
    torch.testing.assert_close(
        denoised[0], expected_result, rtol=1e-5, atol=1e-5 * float(expected_result.abs().max())
    )


def test_negative_branch_without_a_negative_is_refused():
    model = tiny.guided(tiny.patcher(), branch="negative")

    with pytest.raises(ValueError, match=r"no negative conditioning.*'auto' or 'positive'"):
        tiny.sample_with(tiny.BasicGuider(model, tiny.prompt(0)))


def test_blur_sigma_is_in_latent_pixels_whatever_the_size():
    """A kernel that is longer than the latent, here 30 pixels to either side, is cut to it."""
    latent = torch.zeros(1, 4, 16, 8)
    sampler, extra, [(q, k)], _ = one_evaluation(latent=latent, blur_sigma=10.0)
    x0, _ = halves(sampler.out)

    mask = paper.nearest(paper.received(q[0], k[0], heads=4).view(8, 4), 16, 8) > 1

    x_bar = halves(sampler.x)[0] + paper.degraded(x0, mask, 10.0) - x0
    torch.testing.assert_close(extra.x.double(), x_bar, rtol=1e-5, atol=1e-4)
