"""Record Attention where a pass is not whole: areas, several prompts, split batches, context windows."""

import comfy_extras.nodes_perpneg as perpneg
import pytest
import torch

from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny

pytestmark = pytest.mark.oldest_host


def test_areas_are_blended_and_prompts_kept_apart():
    """The left half has a prompt of its own; both have the right place and the grid of the whole."""
    left = tiny.prompt(5, tokens=9, area=(16, 8, 0, 0))
    watched, record = rec.record_attention(tiny.patcher())

    tiny.sample(watched, positive=[*tiny.prompt(0), *left], steps=1)

    (step,) = rec.steps_of(record)
    assert step.received["positive", "m0.0"].shape == (1, 8, 8)
    whole, part = step.prompt["positive", "m0.0", 0], step.prompt["positive", "m0.0", 1]
    assert whole.shape == (1, 7, 8, 8)
    assert part.shape == (1, 9, 8, 8)
    torch.testing.assert_close(part.float().sum(1)[..., :4], torch.ones(1, 8, 4), rtol=0, atol=5e-3)
    assert (part[..., 4:] == 0).all()
    torch.testing.assert_close(whole.float().sum(1), torch.ones(1, 8, 8), rtol=0, atol=5e-3)

    alone, its_record = rec.record_attention(tiny.patcher())
    tiny.sample(alone, steps=1)
    (expected,) = rec.steps_of(its_record)
    rec.assert_close_in_half(whole, expected.prompt["positive", "m0.0", 0])
    right = step.received["positive", "m0.0"][..., 4:]
    rec.assert_close_in_half(right, expected.received["positive", "m0.0"][..., 4:])


def test_a_prompt_that_the_host_repeats_has_its_own_tokens():
    """7 tokens beside 14: the host repeats the shorter one in the pass they share."""
    watched, record = rec.record_attention(tiny.patcher())
    alone, its_record = rec.record_attention(tiny.patcher())

    tiny.sample(watched, negative=tiny.prompt(1, tokens=14), steps=1)
    tiny.sample(alone, steps=1)

    (step,), (expected,) = rec.steps_of(record), rec.steps_of(its_record)
    assert step.prompt["negative", "m0.0", 0].shape == (1, 14, 8, 8)
    rec.assert_close_in_half(step.prompt["positive", "m0.0", 0], expected.prompt["positive", "m0.0", 0])


def test_a_prompt_that_is_not_active_is_not_there():
    late = tiny.prompt(5, start_percent=0.5)
    early = tiny.prompt(0, end_percent=0.5)
    watched, record = rec.record_attention(tiny.patcher())

    tiny.sample(watched, positive=[*early, *late], steps=4)

    conditions = [
        {c for branch, _, c in step.prompt if branch == "positive"} for step in rec.steps_of(record)
    ]
    assert conditions[0] == {0}
    assert conditions[-1] == {1}


@pytest.mark.parametrize("size", [1, 2], ids=["row by row", "image by image"])
def test_a_batch_that_is_split(size):
    def splitting(apply_model, args):
        x, t, c = args["input"].split(size), args["timestep"].split(size), dict(args["c"])
        context = c.pop("c_crossattn").split(size)
        parts = zip(x, t, context, strict=True)
        return torch.cat([apply_model(*part, c_crossattn=y, **c) for *part, y in parts])

    latent = torch.zeros(2, 4, 16, 16)
    whole, its_record = rec.record_attention(tiny.patcher())
    tiny.sample(whole, latent, steps=1)
    model = tiny.patcher()
    model.set_model_unet_function_wrapper(splitting)
    watched, record = rec.record_attention(model)
    tiny.sample(watched, latent, steps=1)

    (step,), (expected,) = rec.steps_of(record), rec.steps_of(its_record)
    for key, received in expected.received.items():
        rec.assert_close_in_half(step.received[key], received)
    for key, prompt in expected.prompt.items():
        rec.assert_close_in_half(step.prompt[key], prompt)


def test_branches_of_guiders_with_lists_of_their_own():
    watched, record = rec.record_attention(tiny.patcher(), prompt=False)
    guider = perpneg.Guider_PerpNeg(watched)
    guider.set_conds(tiny.prompt(0), tiny.prompt(1), tiny.prompt(9))
    guider.set_cfg(4.0, 1.0)
    tiny.sample_with(guider, steps=1)

    (step,) = rec.steps_of(record)
    assert {branch for branch, _ in step.received} == {"positive", "negative", "empty_negative_prompt"}
    for branch, prompt in (("positive", 0), ("negative", 1), ("empty_negative_prompt", 9)):
        alone, its_record = rec.record_attention(tiny.patcher(), prompt=False)
        tiny.sample_with(tiny.BasicGuider(alone, tiny.prompt(prompt)), steps=1)
        expected = rec.steps_of(its_record)[0].received["positive", "m0.0"]
        rec.assert_close_in_half(step.received[branch, "m0.0"], expected)


def test_context_windows_are_put_together():
    """5 images in windows 0-2 and 2-4, which are evaluated like a batch."""
    watched, record = rec.record_attention(tiny.windowed(tiny.patcher()))
    plain, its_record = rec.record_attention(tiny.patcher())
    latent = torch.zeros(5, 4, 16, 16)

    tiny.sample(watched, latent, steps=1)
    tiny.sample(plain, latent, steps=1)

    (step,), (expected,) = rec.steps_of(record), rec.steps_of(its_record)
    for key in expected.received:
        rec.assert_close_in_half(step.received[key], expected.received[key])
    for key in expected.prompt:
        rec.assert_close_in_half(step.prompt[key], expected.prompt[key])
