"""Which evaluations Record Attention keeps: one a step, a run for each sampler, no other node's passes."""

import gc
import logging
import weakref

import comfy_extras.nodes_hypertile as hypertile
import comfy_extras.nodes_pag as pag
import comfy_extras.nodes_tomesd as tome
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention

from inner_guidance.host.recording import run as recording_run
from inner_guidance.host.sampling import step_recorder
from inner_guidance.host.taps import attention_received
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.tiny_models import result_of

pytestmark = pytest.mark.oldest_host

# Steps


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpmpp_2s_ancestral", "dpmpp_sde"])
def test_one_entry_a_step_of_the_schedule_at_the_steps_own_latent(sampler):
    """Heun's method evaluates the sigma of the next step before it is there: the later evaluation is kept."""
    model = tiny.patcher()
    seen = tiny.watch(model)
    watched, record = rec.record_attention(model, prompt=False)
    where = []
    tiny.sample(watched, steps=4, sampler=sampler, callback=lambda i, x0, x, total: where.append(x.clone()))

    (run,) = record.runs
    schedule = seen.passes[0].transformer_options["sample_sigmas"].tolist()
    assert [step.number for step in run.steps] == [0, 1, 2, 3]
    assert [step.sigma for step in run.steps] == pytest.approx(schedule[:-1])
    for step, x in zip(run.steps, where, strict=True):
        alone, its_record = rec.record_attention(tiny.patcher(), prompt=False)
        tiny.sample_with(Once(alone, x, step.sigma), steps=1)
        (expected,) = rec.steps_of(its_record)
        rec.assert_close_in_half(step.received["positive", "m0.0"], expected.received["positive", "m0.0"])


class Once(tiny.BasicGuider):
    """Evaluates the model once, at this x and sigma."""

    def __init__(self, model, x, sigma):
        super().__init__(model, tiny.prompt(0))
        self.x, self.sigma = x, sigma

    def __call__(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        return super().__call__(self.x, torch.full_like(timestep, self.sigma), model_options, seed)


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({"max_steps": 3}, [0, 4, 7]),
        ({"max_steps": 1}, [7]),
        ({"max_steps": 8}, list(range(8))),
        ({"start_percent": 0.4, "end_percent": 0.9}, [3, 4, 5, 6]),
        ({"start_percent": 0.4, "max_steps": 2}, [3, 7]),
    ],
    ids=str,
)
def test_range_and_number_of_steps(settings, numbers):
    """8 steps, of which step i is at i / 7 of the schedule."""
    model = tiny.patcher()
    watched, record = rec.record_attention(model, prompt=False, **settings)

    tiny.sample(watched, steps=8)

    assert [step.number for step in rec.steps_of(record)] == numbers


def test_latent_and_image_size_are_told():
    watched, record = rec.record_attention(tiny.patcher(), prompt=False)

    tiny.sample(watched, torch.zeros(2, 4, 16, 24), steps=1)

    assert record.runs[0].latent_shape == (2, 4, 16, 24)
    assert record.runs[0].image_size == (128, 192)


# Runs


def test_two_samplers_and_a_second_queue():
    watched, record = rec.record_attention(tiny.patcher(), prompt=False)

    with rec.executing("3", "first"):
        tiny.sample(watched, steps=2)
    with rec.executing("8", "first"):
        tiny.sample(watched, torch.zeros(1, 4, 8, 8), steps=3)
    kept = record.runs[1]
    with rec.executing("3", "second"):
        tiny.sample(watched, torch.zeros(1, 4, 24, 24), steps=1)

    assert [(run.execution.node_id, len(run.steps)) for run in record.runs] == [("8", 3), ("3", 1)]
    assert record.runs[0] is kept  # the sampler that the host has in its cache
    assert record.runs[1].latent_shape == (1, 4, 24, 24)


def test_two_recorded_branches_of_a_graph_do_not_mix():
    trunk = tiny.patcher()
    first, first_record = rec.record_attention(trunk)
    _, second_record = rec.record_attention(trunk)

    tiny.sample(first, steps=1)

    assert len(first_record.runs) == 1
    assert second_record.runs == []


def test_nothing_but_the_record_outlives_a_run(monkeypatch):
    alive = []
    for owner, name in (
        (recording_run, "RecordedRun"),
        (recording_run, "Recorder"),
        (step_recorder, "Evaluation"),
    ):

        class Remembered(getattr(owner, name)):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                alive.append(weakref.ref(self))

        monkeypatch.setattr(owner, name, Remembered)
    watched, record = rec.record_attention(tiny.patcher())
    tiny.sample(watched)
    steps = [weakref.ref(t) for step in rec.steps_of(record) for t in step.received.values()]

    gc.collect()
    assert len(alive) == 1 + 3 + 3
    assert [ref() for ref in alive if ref() is not None] == []
    del watched, record
    gc.collect()
    assert [ref() for ref in steps if ref() is not None] == []


# Beside other nodes


OTHERS = {
    "SAG": tiny.guided,
    "PAG": lambda model: result_of(pag.PerturbedAttentionGuidance.execute(model, 3.0)),
    "HyperTile": lambda model: result_of(hypertile.HyperTile.execute(model, 32, 2, 1, False)),
    "ToMe": lambda model: result_of(tome.TomePatchModel.execute(model, 0.5)),
}


@pytest.mark.parametrize("record_first", [True, False], ids=["record first", "record last"])
@pytest.mark.parametrize("other", OTHERS)
def test_beside_other_nodes(other, record_first):
    """The image is bit for bit what the other node alone makes; only the sampler's own pass is recorded."""
    attach = OTHERS[other]
    torch.manual_seed(0)  # ToMe and HyperTile draw from the global generator
    expected = tiny.sample(attach(tiny.patcher()))

    torch.manual_seed(0)
    if record_first:
        model, record = rec.record_attention(tiny.patcher(), blocks="m0,u3")
        model = attach(model)
    else:
        model, record = rec.record_attention(attach(tiny.patcher()), blocks="m0,u3")
    assert torch.equal(tiny.sample(model), expected)

    steps = rec.steps_of(record)
    assert len(steps) == 3
    plain, its_record = rec.record_attention(tiny.patcher(), blocks="m0,u3")
    tiny.sample(plain, steps=3)
    of_plain = rec.steps_of(its_record)[0]
    assert steps[0].received.keys() == of_plain.received.keys()
    for key, received in steps[0].received.items():
        torch.testing.assert_close(received.float().mean(), torch.tensor(1.0), rtol=0, atol=1e-2)
        if other in ("SAG", "PAG"):
            assert torch.equal(received, of_plain.received[key])
    for key, prompt in steps[0].prompt.items():
        if other in ("SAG", "PAG"):
            assert torch.equal(prompt, of_plain.prompt[key])


def test_each_evaluation_is_read_once(monkeypatch):
    """Neither PAG's pass nor the second of SAG is read; SAG reads the negative once more, for itself."""
    rows = []
    received = attention_received.received_attention
    monkeypatch.setattr(
        attention_received,
        "received_attention",
        lambda q, k, mask: rows.append(len(q)) or received(q, k, mask),
    )
    model, _ = rec.record_attention(OTHERS["PAG"](tiny.guided(tiny.patcher())))

    tiny.sample(model, steps=2)

    assert sorted(rows) == [1, 1, 2, 2]


def test_a_replaced_attention_to_the_prompt_is_read():
    """As IPAdapter does it."""

    def replaced(q, k, v, extra_options):
        return optimized_attention(q, k, v, extra_options["n_heads"]) + 0.1

    model = tiny.patcher()
    model.set_model_attn2_replace(replaced, "middle", 0)
    watched, record = rec.record_attention(model)
    plain, its_record = rec.record_attention(tiny.patcher())

    samples = tiny.sample(watched, steps=1)
    tiny.sample(plain, steps=1)

    assert torch.equal(samples, tiny.sample(model, steps=1))
    (step,), (expected,) = rec.steps_of(record), rec.steps_of(its_record)
    assert torch.equal(step.prompt["positive", "m0.0", 0], expected.prompt["positive", "m0.0", 0])


def test_attention_overrides_are_chained():
    model = tiny.patcher()

    def override(attention, q, k, v, *args, **kwargs):
        return attention(q, k, v, *args, **kwargs) * 1.01

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    watched, record = rec.record_attention(model)

    assert torch.equal(tiny.sample(watched), tiny.sample(model))
    assert len(rec.steps_of(record)) == 3


def test_attention_that_cannot_be_read_is_reported_once(caplog):
    model = tiny.patcher()
    model.set_model_attn1_patch(lambda q, k, v, extra_options: (q, k[:, 1:], v[:, 1:]))
    watched, record = rec.record_attention(model, prompt=False)

    with caplog.at_level(logging.WARNING):
        tiny.sample(watched)

    warnings = [r.getMessage() for r in caplog.records if "Record Attention" in r.getMessage()]
    assert len(warnings) == 1
    with pytest.raises(ValueError, match="nothing was read of this sampler's run"):
        record.run_for(None, None)
