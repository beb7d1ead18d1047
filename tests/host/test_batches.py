"""An image of a batch is guided as it is alone, and one that cannot be guided leaves the others alone."""

import logging

import comfy.sample
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from inner_guidance.host.depth.estimation import estimate_depth
from inner_guidance.host.keys import TAG
from inner_guidance.host.steering import gradient_pass
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny

pytestmark = pytest.mark.oldest_host

NOISE = tiny.noise(3, 4, 16, 16)
BOTH_LOSSES = {"depth_prior": depth.prior(), "target_depth": depth.target()}


def run(model, rows, latents=None):
    """The images of these rows of the batch, drawn together; alone, a row is that of Latent From Batch."""
    latents = torch.zeros_like(NOISE) if latents is None else latents
    return comfy.sample.sample(
        model,
        NOISE[rows],
        2,
        4.0,
        "euler",
        "normal",
        tiny.prompt(0),
        tiny.prompt(1),
        latents[rows],
        disable_pbar=True,
        seed=0,
    )


GUIDANCES = {
    f"SAG, {mask}": lambda mask=mask: tiny.guided(tiny.patcher(), mask=mask)
    for mask in ("attention", "random", "high frequency")
} | {
    f"DAG, {mode}": lambda mode=mode, scale=scale: depth.depth_guided(
        tiny.patcher(), mode=mode, **BOTH_LOSSES, prior_scale=scale
    )
    for mode, scale in (("robust", 1.0), ("paper", 10.0))
}


@pytest.mark.parametrize("guided", GUIDANCES.values(), ids=GUIDANCES)
def test_an_image_is_guided_alike_alone_and_in_a_batch(guided):
    together, plain = run(guided(), [0, 1, 2]), run(tiny.patcher(), [0, 1, 2])

    for row in range(3):
        alone = run(guided(), [row])
        assert (together[row] - alone).norm() < 1e-3 * (alone - plain[row]).norm()
        tiny.assert_steered(alone, plain[row])


def test_each_image_of_a_batch_has_a_target_of_its_own():
    targets = torch.cat([depth.target(), depth.target().flip(2), depth.target().transpose(1, 2)])

    together = run(depth.depth_guided(tiny.patcher(), target_depth=targets), [0, 1, 2])

    for row in range(3):
        alone = run(depth.depth_guided(tiny.patcher(), target_depth=targets[row : row + 1]), [row])
        assert (together[row] - alone).abs().max() < 1e-3 * alone.abs().max()
    of_first = run(depth.depth_guided(tiny.patcher(), target_depth=targets[:1]), [1])
    tiny.assert_steered(together[1], of_first)


def test_the_depth_of_an_image_is_that_of_it_alone():
    def estimate(rows):
        return estimate_depth(tiny.patcher(), depth.head(), NOISE[rows], 0.1, 2, seed=0)

    torch.testing.assert_close(
        estimate([0, 1, 2]), torch.cat([estimate([row]) for row in range(3)]), rtol=1e-3, atol=1e-4
    )


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if "Guidance" in r.getMessage()]


def spoilt_gradient(monkeypatch, rows):
    """Gradients that are not finite in these rows."""
    evaluate = gradient_pass.evaluate_with_gradient

    def spoil(*args, **kwargs):
        out, (gradient,) = evaluate(*args, **kwargs)
        gradient = gradient.clone()
        gradient[rows] = torch.inf
        return out, [gradient]

    monkeypatch.setattr(gradient_pass, "evaluate_with_gradient", spoil)


def test_a_gradient_that_is_not_finite_leaves_only_its_image_unguided(monkeypatch, caplog):
    plain, guided = run(tiny.patcher(), [0, 1, 2]), run(depth.depth_guided(tiny.patcher()), [0, 1, 2])
    spoilt_gradient(monkeypatch, [1])

    with caplog.at_level(logging.WARNING):
        image = run(depth.depth_guided(tiny.patcher()), [0, 1, 2])

    assert torch.equal(image[[0, 2]], guided[[0, 2]])
    tiny.assert_steered(image[[0, 2]], plain[[0, 2]])
    assert (image[1] - plain[1]).abs().max() < 1e-3 * plain[1].abs().max()
    (message,) = warnings(caplog)
    assert message.startswith("Depth-Aware Guidance has no effect in image 2 of the batch at sigma")


def test_an_extra_pass_that_is_not_finite_leaves_only_its_image_unguided(caplog):
    def with_wrapper(model, spoilt):
        """In both cases another node's code is in the extra pass, which then evaluates both prompts."""

        def spoil(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
            out = executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
            if TAG in transformer_options:
                out[spoilt] = torch.nan
            return out

        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "spoil", tiny.looks_on(spoil))
        return model

    plain = run(tiny.patcher(), [0, 1, 2])
    guided = run(with_wrapper(tiny.guided(tiny.patcher()), []), [0, 1, 2])

    with caplog.at_level(logging.WARNING):
        image = run(with_wrapper(tiny.guided(tiny.patcher()), [1]), [0, 1, 2])

    assert torch.equal(image[[0, 2]], guided[[0, 2]])
    tiny.assert_steered(image[[0, 2]], plain[[0, 2]])
    assert torch.equal(image[1], plain[1])
    (message,) = warnings(caplog)
    assert message.startswith("Self-Attention Guidance has no effect in image 2 of the batch at sigma")


@pytest.mark.parametrize("guide", [tiny.guided, depth.depth_guided])
def test_a_latent_that_is_not_finite_leaves_the_other_images_guided(guide, caplog):
    latents = torch.zeros_like(NOISE)
    latents[1] = torch.nan
    guided = run(guide(tiny.patcher()), [0, 1, 2])

    with caplog.at_level(logging.WARNING):
        image = run(guide(tiny.patcher()), [0, 1, 2], latents)

    assert torch.equal(image[[0, 2]], guided[[0, 2]])
    assert image[1].isnan().all()
    (message,) = warnings(caplog)
    assert "in image 2 of the batch" in message
