"""benchmarks/: each row measures what its name says, and the naive baseline computes the same guidance."""

import comfy.model_base
import pytest
import torch

from inner_guidance.benchmarks import evaluations as measuring
from inner_guidance.benchmarks.evaluations import evaluations, peak_bytes, seconds
from inner_guidance.benchmarks.naive_depth_guidance import naively_guided
from inner_guidance.benchmarks.rows import PLAIN, rows_of
from inner_guidance.benchmarks.speed_tables import all_rows, ratios
from inner_guidance.benchmarks.step_costs import Row, Steps
from inner_guidance.host.steering import gradient_pass
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny

MIB = 2**20
LATENT = (1, 4, 16, 16)


@pytest.fixture
def tiny_runs(monkeypatch):
    """Prompts of the tiny models' sizes."""
    monkeypatch.setattr(measuring, "prompt", lambda model, seed: tiny.prompt(seed))


def test_the_peak_is_of_what_lives_at_the_same_time():
    before = torch.zeros(MIB)

    def call():
        a = torch.zeros(MIB)
        b = a + before
        del a
        return b * 2

    _, peak = peak_bytes(tiny.CPU, call)

    assert peak == pytest.approx(2 * 4 * MIB, rel=1e-4)  # and scalars


def test_each_evaluation_of_the_sampler_is_measured(tiny_runs):
    model = tiny.patcher()
    watched = tiny.watch(model)

    took = evaluations(model, 3, seconds, LATENT)

    assert [p.sigma for p in watched.passes] == sorted({p.sigma for p in watched.passes}, reverse=True)
    assert len(took) == len(watched) == 3
    assert all(t > 0 for t in took)


def test_the_naive_baseline_guides_in_the_same_direction():
    model, network = tiny.patcher(), depth.head().head.network
    guided = depth.depth_guided(model), naively_guided(model, network)
    plain, ours, naive = (tiny.sample(of, steps=1) for of in (model, *guided))

    shifts = [(image - plain).double().flatten() for image in (ours, naive)]

    assert torch.cosine_similarity(*shifts, dim=0) > 0.9999


@pytest.mark.slow
def test_each_row_does_what_it_is_named_for(tiny_runs, monkeypatch):
    gradients = []
    evaluate = gradient_pass.evaluate_with_gradient
    monkeypatch.setattr(
        gradient_pass, "evaluate_with_gradient", lambda *a, **k: gradients.append(1) or evaluate(*a, **k)
    )
    passes = []
    apply_model = comfy.model_base.BaseModel._apply_model
    monkeypatch.setattr(
        comfy.model_base.BaseModel, "_apply_model", lambda *a, **k: passes.append(1) or apply_model(*a, **k)
    )
    done = {}
    for name, row in rows_of(tiny.patcher("sd15")).items():
        gradients.clear(), passes.clear()
        evaluations(row.model, row.steps, seconds, LATENT)
        done[name] = (row.steps, len(passes), len(gradients))

    # Steps, forward passes, gradients of ours; a gradient splits the sampler's pass in two, but not NAG's.
    assert done == {
        "plain": (1, 1, 0),
        "recording": (1, 1, 0),
        "features": (1, 1, 0),
        "sag": (1, 2, 0),
        "sag_reused": (2, 3, 0),
        "host_sag": (1, 2, 0),
        "dag": (1, 2, 1),
        "dag_all": (1, 2, 1),
        "dag_reused": (2, 3, 1),
        "dag_checkpointing": (1, 2, 1),
        "dag_latent": (1, 1, 0),
        "nag": (1, 1, 0),
        "dag_nag": (1, 1, 1),
        "naive_dag": (1, 2, 0),
        "both": (1, 3, 1),
    }


def test_rows_take_turns_and_are_told_beside_the_plain_step(tiny_runs):
    model = tiny.patcher()
    rows = {PLAIN: Row("plain step", model), "dag": Row("guided", depth.depth_guided(model), steps=2)}

    steps = Steps(rows, weights=0.0, repeats=2, latent=LATENT)

    assert [len(cost.seconds) for cost in steps.costs.values()] == [2, 2]
    assert steps.time(PLAIN, PLAIN) == steps.memory(PLAIN, PLAIN) == 1
    steps.weights, steps.costs[PLAIN].peak, steps.costs["dag"].peak = 10.0, 2.0, 5.0
    assert steps.memory("dag", PLAIN) == 15 / 12
    text = "\n".join([*ratios(steps, {"sag": 1.0, "host_sag": 10.0}, 0.05), *all_rows(steps, "a model")])
    assert "| time: guided / plain step |" in text
    assert "| 0.100 | 0.1 |" in text
    assert "host_sag" not in text
