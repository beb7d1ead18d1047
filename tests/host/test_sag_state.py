"""What a run of Self-Attention Guidance remembers, what is left of it, and what a bad pass does to it."""

import gc
import logging
import threading
import weakref

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from inner_guidance.tests.support import tiny_models as tiny

try:
    import comfy.multigpu as multigpu
except ImportError:  # ComfyUI 0.9.2
    multigpu = None

from inner_guidance.host.keys import TAG
from inner_guidance.host.sampling import step_recorder
from inner_guidance.host.steering import sag_run

pytestmark = pytest.mark.oldest_host

# State


def test_a_model_runs_again_identically():
    model = tiny.guided(tiny.patcher(), every_n_steps=2)

    first = tiny.sample(model)
    tiny.sample(model, torch.zeros(2, 4, 8, 24), negative=tiny.prompt(8))

    assert torch.equal(tiny.sample(model), first)
    tiny.assert_steered(first, tiny.sample(tiny.patcher()))


def test_branches_of_a_graph_do_not_mix():
    trunk = tiny.patcher()
    strong, weak = tiny.guided(trunk, scale=1.5), tiny.guided(trunk, scale=0.2)

    alone = tiny.sample(tiny.guided(tiny.patcher(), scale=1.5))

    tiny.assert_steered(tiny.sample(weak), alone)
    assert torch.equal(tiny.sample(strong), alone)
    assert torch.equal(tiny.sample(trunk), tiny.sample(tiny.patcher()))


@pytest.fixture
def runs_and_steps(monkeypatch):
    """Weak references to everything that remembers something."""
    alive = []
    for owner, name in (
        (sag_run, "SelfAttentionRun"),
        (sag_run, "SelfAttentionStep"),
        (step_recorder, "Evaluation"),
    ):
        made = getattr(owner, name)

        class Remembered(made):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                alive.append(weakref.ref(self))

        monkeypatch.setattr(owner, name, Remembered)
    return alive


class InterruptionError(Exception):
    """Stands for the host's InterruptProcessingException and for any error."""


def interrupting(model, after):
    """The model, which raises in the forward pass of this number."""
    count = 0

    def wrapper(executor, *args, **kwargs):
        nonlocal count
        count += 1
        if count > after:
            raise InterruptionError
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "interrupt", wrapper)
    return model


def test_nothing_outlives_a_run(runs_and_steps):
    model = tiny.guided(tiny.patcher())
    samples = tiny.sample(model)

    gc.collect()

    assert samples.isfinite().all()
    assert len(runs_and_steps) == 1 + 3 + 3
    assert [ref() for ref in runs_and_steps if ref() is not None] == []


@pytest.mark.parametrize("after", [1, 2, 3], ids=["in the extra pass", "in the sampler's pass", "later"])
def test_an_interrupt_leaves_the_next_run_clean(runs_and_steps, after):
    model = tiny.guided(tiny.patcher())
    undisturbed = tiny.sample(model)

    with pytest.raises(InterruptionError):
        tiny.sample(interrupting(model, after))

    gc.collect()
    assert [ref() for ref in runs_and_steps if ref() is not None] == []
    assert torch.equal(tiny.sample(model), undisturbed)


def test_guider_gets_its_options_back():
    model = tiny.guided(tiny.patcher())
    guider = tiny.BasicGuider(interrupting(model, 1), tiny.prompt(0))
    before = guider.model_options

    with pytest.raises(InterruptionError):
        tiny.sample_with(guider)

    assert guider.model_options is before


# Bad values


def test_a_pass_that_is_not_finite_is_dropped_and_reported_once(caplog):
    model = tiny.patcher()

    def wrapper(apply_model, args):
        out = apply_model(args["input"], args["timestep"], **args["c"])
        return out * torch.nan if TAG in args["c"]["transformer_options"] else out

    model.set_model_unet_function_wrapper(wrapper)
    with caplog.at_level(logging.WARNING):
        samples = tiny.sample(tiny.guided(model))

    assert torch.equal(samples, tiny.sample(tiny.patcher()))
    warnings = [r.getMessage() for r in caplog.records if "Self-Attention Guidance" in r.getMessage()]
    assert len(warnings) == 1
    assert "not finite" in warnings[0]


def test_cross_attention_is_never_read_instead(caplog):
    """Self-attention that somebody computes in another way altogether, and a prompt of as many tokens."""
    model = tiny.patcher()
    attention = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1
    model.add_object_patch(
        "diffusion_model.middle_block.1.transformer_blocks.0.attn1.forward",
        lambda x, **kwargs: attention.to_out(attention.to_v(x)),
    )
    prompts = {"positive": tiny.prompt(0, tokens=64), "negative": tiny.prompt(1, tokens=64)}

    with caplog.at_level(logging.WARNING):
        tiny.sample(tiny.guided(model), **prompts)

    assert "could not be read" in caplog.text


def test_unreadable_attention_is_reported_once(caplog):
    """A node that gives the block other tokens than the image's."""
    model = tiny.patcher()
    model.set_model_attn1_patch(lambda q, k, v, extra_options: (q, k[:, 1:], v[:, 1:]))

    with caplog.at_level(logging.WARNING):
        samples = tiny.sample(tiny.guided(model))

    assert torch.equal(samples, tiny.sample(model))
    warnings = [r.getMessage() for r in caplog.records if "Self-Attention Guidance" in r.getMessage()]
    assert len(warnings) == 1
    assert "could not be read" in warnings[0]


@pytest.mark.skipif(multigpu is None, reason="this host has no multi-GPU evaluation")
def test_two_devices_evaluate_the_branches_in_two_threads():
    """The host's multi-GPU evaluation, with the CPU under two names."""
    devices = [torch.device("cpu"), torch.device("cpu", 0)]
    pool = multigpu.MultiGPUThreadPool(devices)
    model = tiny.patcher()
    seen = tiny.watch(model)
    threads = set()

    def two_devices(executor, x, timestep, model_options, seed):
        options = {"multigpu_clones": dict.fromkeys(devices, model), "multigpu_thread_pool": pool}
        return executor(x, timestep, model_options | options, seed)

    def which_thread(executor, *args, **kwargs):
        threads.add(threading.get_ident())
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", two_devices)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", which_thread)
    try:
        samples = tiny.sample(tiny.guided(model))
    finally:
        pool.shutdown()

    assert len(threads) == 2
    assert sorted(seen.labels[:2]) == [[0], [1]]
    expected = tiny.sample(tiny.guided(tiny.patcher()))
    tiny.assert_steered(expected, tiny.sample(tiny.patcher()))
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
