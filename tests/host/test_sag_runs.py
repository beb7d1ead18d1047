"""What Self-Attention Guidance costs, what a run remembers and what is left of it."""

import gc
import logging
import threading
import weakref

import comfy.model_patcher
import comfy_extras.nodes_easycache as easycache
import comfy_extras.nodes_pag as pag
import pytest
import tiny_models as tiny
import torch
from comfy.patcher_extension import WrappersMP

try:
    import comfy.multigpu as multigpu
except ImportError:  # ComfyUI 0.9.2
    multigpu = None

from inner_guidance.guidance.host import recording, self_attention_guidance
from inner_guidance.guidance.host.blocks import attention_blocks, parse_blocks
from inner_guidance.guidance.host.extra_pass import TAG
from inner_guidance.guidance.host.run import for_this_run
from inner_guidance.guidance.host.self_attention_step import wrap_calc_cond_batch

PLAIN = [[1, 0]]
GUIDED = [[1, 0], [1]]


def labels(steps=4, model_type="EPS", sampler="euler", **settings):
    """The labels of all passes of a run."""
    model = tiny.patcher(model_type=model_type)
    seen = tiny.watch(model)
    tiny.sample(tiny.guided(model, **settings), steps=steps, sampler=sampler)
    return seen.labels


# Recording


class RecordEverything:
    """An OUTER_SAMPLE wrapper that records and does nothing else."""

    def __init__(self, layers):
        self.layers = layers
        self.maps = []

    def __call__(self, executor, *args, **kwargs):
        def predict_noise(executor, x, timestep, model_options, seed):
            recorder = recording.AttentionRecorder(self.layers, lambda labels, count: labels)
            options = comfy.model_patcher.create_model_options_clone(model_options)
            wrap_calc_cond_batch(options, recorder.calc_cond_batch)
            out = executor(x, timestep, options, seed)
            conds = recorder.evaluations[0].conds
            self.maps.append([recorder.received(branch, conds, x) for branch in (0, 1)])
            return out

        with for_this_run(executor.class_obj, WrappersMP.PREDICT_NOISE, predict_noise):
            return executor(*args, **kwargs)


@pytest.mark.parametrize(
    ("kind", "blocks"), [("small", "d0-d1,m0,u0-u3"), ("sd15", "m0"), ("sdxl", "m0,u0.1")]
)
def test_recording_alone_leaves_the_image_bit_identical(kind, blocks):
    model = tiny.patcher(kind)
    layers = parse_blocks(blocks, attention_blocks(model.model.diffusion_model))
    record = RecordEverything(layers)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "test", record)

    recorded = tiny.sample(model, torch.zeros(2, 4, 16, 16))

    assert torch.equal(recorded, tiny.sample(tiny.patcher(kind), torch.zeros(2, 4, 16, 16)))
    assert len(record.maps) == 3
    for negative, positive in record.maps:
        assert negative.shape == positive.shape == (2, 1, 16, 16)
        assert not torch.equal(negative, positive)


# Cost


def with_pag(model):
    return pag.PerturbedAttentionGuidance.execute(model, 3.0).result[0]


@pytest.mark.parametrize(
    ("attach", "reads_a_step"),
    [
        (tiny.guided, 1),
        (lambda model: tiny.guided(model, branch="positive"), 1),
        (lambda model: with_pag(tiny.guided(model, branch="positive")), 1),
        (lambda model: tiny.guided(tiny.guided(model)), 2),
    ],
    ids=["one node", "of the positive", "beside PAG", "two nodes"],
)
def test_attention_is_read_once_a_step_and_never_in_an_extra_pass(monkeypatch, attach, reads_a_step):
    rows = []
    received = recording.received_attention
    monkeypatch.setattr(
        recording, "received_attention", lambda q, k, mask: rows.append(len(q)) or received(q, k, mask)
    )

    tiny.sample(attach(tiny.patcher()))

    assert rows == [1] * reads_a_step * 3


def test_scale_0_is_no_node():
    model = tiny.patcher()

    assert tiny.guided(model, scale=0.0).model_options == model.model_options


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, GUIDED * 4),
        ({"start_percent": 0.4}, PLAIN * 2 + GUIDED * 2),
        ({"end_percent": 0.4}, GUIDED * 2 + PLAIN * 2),
        ({"start_percent": 0.2, "end_percent": 0.5}, PLAIN + GUIDED + PLAIN * 2),
        ({"start_percent": 0.41, "end_percent": 0.42}, PLAIN * 4),
        ({"blur_sigma": 0.0}, PLAIN * 4),
        ({"threshold": 10.0}, PLAIN * 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("model_type", ["EPS", "FLOW"])
def test_extra_passes_only_where_there_is_guidance(settings, expected, model_type):
    assert labels(**settings, model_type=model_type) == expected


@pytest.mark.parametrize(
    "settings", [{"start_percent": 0.41, "end_percent": 0.42}, {"threshold": 10.0}], ids=str
)
def test_no_guidance_is_bit_identical(settings):
    assert torch.equal(tiny.sample(tiny.guided(tiny.patcher(), **settings)), tiny.sample(tiny.patcher()))


def test_steps_before_the_start_are_bit_identical():
    latents = {}
    for name, model in (
        ("plain", tiny.patcher()),
        ("guided", tiny.guided(tiny.patcher(), start_percent=0.4)),
    ):
        steps = latents[name] = []
        tiny.sample(model, steps=4, callback=lambda i, x0, x, total, steps=steps: steps.append(x0.clone()))

    same = [torch.equal(a, b) for a, b in zip(latents["plain"], latents["guided"], strict=True)]
    assert same == [True, True, False, False]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"every_n_steps": 2}, (GUIDED + PLAIN) * 3),
        ({"every_n_steps": 3}, (GUIDED + PLAIN * 2) * 2),
        ({"every_n_steps": 100}, GUIDED + PLAIN * 5),
        ({"every_n_steps": 2, "start_percent": 0.1}, PLAIN + (GUIDED + PLAIN) * 2 + GUIDED),
    ],
    ids=str,
)
def test_every_n_steps(settings, expected):
    assert labels(steps=6, **settings) == expected


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_2s_ancestral"])
def test_every_n_steps_counts_steps_of_the_schedule_not_calls(sampler):
    model = tiny.patcher()
    seen = tiny.watch(model)
    steps = []
    tiny.sample(
        tiny.guided(model, every_n_steps=2),
        steps=5,
        sampler=sampler,
        callback=lambda i, x0, x, total: steps.append(i),
    )

    schedule = seen.passes[0].transformer_options["sample_sigmas"].tolist()
    main = [p for p in seen.passes if TAG not in p.transformer_options]
    fresh = {p.sigma for p in seen.extra}
    assert len(main) > len(steps)
    for p in main:
        step = max(i for i, sigma in enumerate(schedule) if sigma >= p.sigma * (1 - 1e-5))
        assert (p.sigma in fresh) == (step % 2 == 0)


def test_guidance_between_the_passes_is_the_last_one_in_eps():
    model = tiny.patcher()
    seen = tiny.watch(model)
    denoised = []
    tiny.sample(
        tiny.guided(model, every_n_steps=2), steps=3, callback=lambda i, x0, *_: denoised.append(x0.double())
    )
    first, extra, second = seen.passes[:3]
    x0_bar = extra.x.double() - first.x[:1].double() + first.out[:1].double()
    guidance = 0.75 * (x0_bar - extra.out.double())

    uncond, cond = second.out.double().chunk(2)
    expected = uncond + 4 * (cond - uncond) + guidance * second.sigma / first.sigma
    torch.testing.assert_close(denoised[1], expected, rtol=1e-4, atol=1e-3)


def test_no_second_negative_is_bought_between_the_passes():
    """branch negative at cfg 1 needs the negative, but only where its attention is read."""
    model = tiny.patcher()
    seen = tiny.watch(model)

    tiny.sample(tiny.guided(model, branch="negative", every_n_steps=2), steps=4, cfg=1.0)

    assert seen.labels == [[1, 0], [1], [0]] * 2


def test_nothing_is_reused_after_the_negative_has_ended():
    """The guidance of a branch that is no longer evaluated is dropped, not kept for the steps to come."""
    model = tiny.patcher()
    seen = tiny.watch(model)
    denoised = []
    tiny.sample(
        tiny.guided(model, branch="negative", every_n_steps=2),
        steps=6,
        negative=tiny.prompt(1, start_percent=0.0, end_percent=0.4),
        callback=lambda i, x0, x, total: denoised.append(x0),
    )

    assert seen.labels == [[1, 0], [1], [1, 0], [1, 0], [1], [0], [0], [0]]
    for step, forward in zip(denoised[4:], seen.passes[6:], strict=True):
        assert torch.equal(step, 4.0 * forward.out)  # cfg 4 with a negative of 0, as the host has it


def test_a_skipped_step_of_a_cache_takes_the_last_guidance():
    model = easycache.EasyCacheNode.execute(tiny.patcher(), 10.0, 0.0, 1.0, False).result[0]
    seen = tiny.watch(model)
    denoised = []

    tiny.sample(tiny.guided(model), steps=6, callback=lambda i, x0, *_: denoised.append(x0.double()))

    guided = len(seen.extra)
    assert 0 < guided < 6
    last = [p for p in seen.passes if TAG not in p.transformer_options][-1]
    uncond, cond = last.out.double().chunk(2)
    shift = denoised[-1] - (uncond + 4 * (cond - uncond))
    assert shift.abs().max() > 1e-4


# State


def test_a_model_runs_again_identically():
    model = tiny.guided(tiny.patcher(), every_n_steps=2)

    first = tiny.sample(model)
    tiny.sample(model, torch.zeros(2, 4, 8, 24), negative=tiny.prompt(8))

    assert torch.equal(tiny.sample(model), first)


def test_branches_of_a_graph_do_not_mix():
    trunk = tiny.patcher()
    strong, weak = tiny.guided(trunk, scale=1.5), tiny.guided(trunk, scale=0.2)

    alone = tiny.sample(tiny.guided(tiny.patcher(), scale=1.5))

    tiny.sample(weak)
    assert torch.equal(tiny.sample(strong), alone)
    assert torch.equal(tiny.sample(trunk), tiny.sample(tiny.patcher()))


@pytest.fixture
def runs_and_steps(monkeypatch):
    """Weak references to everything that remembers something."""
    alive = []
    for owner, name in (
        (self_attention_guidance, "SelfAttentionRun"),
        (self_attention_guidance, "SelfAttentionStep"),
        (recording, "Evaluation"),
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

    assert samples.isfinite().all()
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
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
