"""Reading leaves a checkpoint's own attention on, which hosts since 0.40 drop where an override is set.

The stand-in for that host has another attention wherever no override is set, so that an image tells whether
one was.
"""

import comfy.ldm.flux.math
import comfy.ldm.modules.attention
import pytest
import torch

from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny

BLOCKS_OF_FLUX = 5  # the tiny one's


@pytest.fixture
def stepped_back(monkeypatch):
    """Whether an override was set, call by call. The attention without one is the checkpoint's own."""
    calls = []

    def choosing(attention):
        def own_or_the_hosts(q, k, v, heads, *args, transformer_options=None, **kwargs):
            overridden = "optimized_attention_override" in (transformer_options or {})
            calls.append(overridden)
            out = attention(q, k, v, heads, *args, transformer_options=transformer_options, **kwargs)
            return out if overridden else (16 * out).round() / 16

        return own_or_the_hosts

    for module in (comfy.ldm.modules.attention, comfy.ldm.flux.math):
        monkeypatch.setattr(module, "optimized_attention", choosing(module.optimized_attention))
    return calls


def overridden_share(calls, model, **kwargs):
    calls.clear()
    samples = tiny.sample(model, **kwargs)
    return sum(calls) / len(calls), samples


def test_the_stand_in_tells_an_override(stepped_back):
    model = tiny.patcher()
    _, own = overridden_share(stepped_back, model)
    model.model_options["transformer_options"]["optimized_attention_override"] = tiny.looks_on(
        lambda attention, *args, **kwargs: attention(*args, **kwargs)
    )

    share, samples = overridden_share(stepped_back, model)

    assert share == 1
    assert not torch.equal(samples, own)


def test_recording_a_unet_sets_no_override(stepped_back):
    watched, record = rec.record_attention(tiny.patcher(), blocks="d0-d1,m0,u0-u3")

    share, samples = overridden_share(stepped_back, watched)

    assert share == 0
    assert torch.equal(samples, overridden_share(stepped_back, tiny.patcher())[1])
    step = rec.steps_of(record)[0]
    assert len({layer for _, layer in step.received}) == 7
    assert len(step.prompt) == 2 * 7


def test_guiding_a_unet_sets_no_override(stepped_back):
    share, samples = overridden_share(stepped_back, tiny.guided(tiny.patcher()))

    assert share == 0
    tiny.assert_steered(samples, overridden_share(stepped_back, tiny.patcher())[1])


def test_a_transformer_has_an_override_in_the_block_that_is_read(stepped_back):
    model = tiny.patcher("flux", "FLUX")
    watched, record = rec.record_attention(model, blocks="b1", max_steps=1)
    latent = torch.zeros(1, 16, 8, 8)

    share, _ = overridden_share(stepped_back, watched, latent=latent, steps=4)

    # One block in one of the four steps.
    assert share == pytest.approx(1 / BLOCKS_OF_FLUX / 4)
    assert len(rec.steps_of(record)) == 1
