"""What Self-Attention Guidance costs: what is read, and which steps have an extra pass."""

import comfy.model_patcher
import comfy_extras.nodes_easycache as easycache
import comfy_extras.nodes_pag as pag
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from inner_guidance.host.keys import TAG, add_wrapper, for_this_run
from inner_guidance.host.sampling.attention_recorder import AttentionRecorder
from inner_guidance.host.taps import attention_received
from inner_guidance.host.taps.blocks import attention_blocks, parse_blocks
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.sag_reference import guidance_of

pytestmark = pytest.mark.oldest_host

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
            recorder = AttentionRecorder(self.layers, lambda labels, count: labels)
            options = comfy.model_patcher.create_model_options_clone(model_options)
            add_wrapper(options, WrappersMP.CALC_COND_BATCH, recorder.calc_cond_batch)
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
    received = attention_received.received_attention
    monkeypatch.setattr(
        attention_received,
        "received_attention",
        lambda q, k, mask: rows.append(len(q)) or received(q, k, mask),
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
    first, _, second = seen.passes[:3]

    uncond, cond = second.out.double().chunk(2)
    expected = uncond + 4 * (cond - uncond) + guidance_of(seen) * second.sigma / first.sigma
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


def test_a_cache_that_skips_every_extra_pass_only_delays_it():
    """It skips steps 2 and 4, in which every_n_steps wants one."""
    model, kept = tiny.patcher(), []

    def skip(executor, *args, **kwargs):
        if TAG in args[-1]:
            return executor(*args, **kwargs)
        kept.append(kept[-1] if len(kept) in (2, 4) else executor(*args, **kwargs))
        return kept[-1]

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "cache", skip)
    seen = tiny.watch(model)

    tiny.sample(tiny.guided(model, every_n_steps=2), steps=6)

    steps = sorted({p.sigma for p in seen.passes}, reverse=True)
    assert [steps.index(p.sigma) for p in seen.extra] == [0, 3, 5]


def skips_whole_steps(model, skipped):
    """The model behind a cache that answers in the sampler's own evaluation, as LazyCache does."""
    model, kept = model.clone(), []

    def skip(executor, *args, **kwargs):
        kept.append(kept[-1] if len(kept) in skipped else executor(*args, **kwargs))
        return kept[-1]

    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "lazycache", skip)
    return model


@pytest.mark.parametrize(
    ("every_n_steps", "skipped", "expected"),
    [(2, (2, 4), [0, 3, 5]), (2, (1, 3), [0, 2, 4]), (3, (2, 3, 4), [0, 5]), (100, (1, 2), [0])],
)
def test_a_cache_that_skips_whole_steps_only_delays_an_extra_pass(every_n_steps, skipped, expected):
    model = skips_whole_steps(tiny.patcher(), skipped)
    seen = tiny.watch(model)

    tiny.sample(tiny.guided(model, every_n_steps=every_n_steps), steps=6)

    schedule = seen.passes[0].transformer_options["sample_sigmas"].tolist()
    assert [schedule.index(pytest.approx(p.sigma)) for p in seen.extra] == expected


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
