"""Samplers with two evaluations in a step: guidance acts in both or in none."""

from functools import partial

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.k_diffusion.sampling import sample_heunpp2
from comfy.patcher_extension import WrappersMP

from inner_guidance.host.keys import TAG
from inner_guidance.host.sampling.evaluated_steps import EvaluatedSteps
from inner_guidance.host.steering import classifier_guidance, dag_run
from inner_guidance.nodes.record import InnerRecordAttention
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.classifier_models import classifier_guided
from inner_guidance.tests.support.node_defaults import execute

pytestmark = pytest.mark.oldest_host

SECOND_ORDER = ("heun", "dpm_2", "dpm_2_ancestral")
CHURNED = ("euler", "heun", "dpm_2", "heunpp2")
END = 0.34  # the steps of 4 start at 0, 1/3, 2/3 and 1
SCHEDULE = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0])


@pytest.mark.parametrize(("sampler", "evaluations"), [("euler", 2), *((s, 4) for s in SECOND_ORDER)])
def test_sag_acts_in_both_evaluations_of_its_last_step(sampler, evaluations):
    model = tiny.guided(tiny.patcher(), end_percent=END)
    seen = tiny.watch(model)

    tiny.sample(model, steps=4, sampler=sampler)

    assert len(seen.extra) == evaluations


def sampled_with_churn(model, sampler, **options):
    """Six steps of a sampler that adds noise at the start of those between s_tmin and s_tmax."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny.prompt(0), tiny.prompt(1))
    guider.set_cfg(4.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 6)
    torch.manual_seed(0)
    latent = torch.zeros(1, 4, 16, 16)
    guider.sample(
        tiny.noise(), latent, comfy.samplers.ksampler(sampler, options), sigmas, disable_pbar=True, seed=0
    )


@pytest.mark.parametrize("options", [{}, {"s_tmin": 0.1, "s_tmax": 5.0}], ids=["all steps", "some steps"])
@pytest.mark.parametrize("sampler", CHURNED)
@pytest.mark.parametrize(
    "guide",
    [partial(tiny.guided, start_percent=0.3, end_percent=0.6), partial(tiny.guided, every_n_steps=2)],
    ids=["a range", "every second step"],
)
def test_the_same_evaluations_are_guided_where_the_sampler_adds_noise_first(guide, sampler, options):
    def guided_evaluations(**options):
        model = tiny.patcher()
        seen = tiny.watch(model)
        sampled_with_churn(guide(model), sampler, **options)
        return [TAG in forward.transformer_options for forward in seen.passes]

    plain = guided_evaluations()
    assert True in plain
    assert guided_evaluations(s_churn=3.0, **options) == plain


@pytest.mark.parametrize("sampler", CHURNED)
def test_each_step_is_recorded_where_the_sampler_adds_noise_first(sampler):
    model, record = execute(InnerRecordAttention, model=tiny.patcher())
    sampled_with_churn(model, sampler, s_churn=3.0)
    assert [step.number for step in record.runs[-1].steps] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("sampler", SECOND_ORDER)
@pytest.mark.parametrize(
    ("guide", "module", "step"),
    [
        (lambda model: depth.depth_guided(model, end_percent=END), dag_run, "DepthFeatureStep"),
        (lambda model: classifier_guided(model, end_percent=END), classifier_guidance, "ClassifierStep"),
    ],
    ids=["DAG", "Classifier Guidance"],
)
def test_gradients_are_taken_in_both(monkeypatch, guide, module, step, sampler):
    made, original = [], getattr(module, step)
    monkeypatch.setattr(module, step, lambda *args, **kwargs: made.append(0) or original(*args, **kwargs))

    tiny.sample(guide(tiny.patcher()), steps=4, sampler=sampler)

    assert len(made) == 4


@pytest.mark.parametrize(
    ("sampler", "fresh"),
    [
        ("euler", [True] * 4),
        ("dpm_2", [True, False] * 3 + [True]),  # its last step is Euler's
        ("dpm_2_ancestral", [True, True, True, False, True, False, True]),
        ("heun", [True, True, True, False, True, False, True]),  # the first step is told as two
        ("dpm_fast", [True, False, True, True]),  # its steps are not the schedule's
    ],
)
def test_evaluations_of_a_step_share_a_gradient(monkeypatch, sampler, fresh):
    """DPM-Solver-2 enlarges what changes within a step, which ends away from the target."""
    made, original = [], dag_run.DepthFeatureStep
    monkeypatch.setattr(
        dag_run, "DepthFeatureStep", lambda **given: made.append(given["fresh"]) or original(**given)
    )

    tiny.sample(depth.depth_guided(tiny.patcher()), steps=4, sampler=sampler)

    assert made == fresh


@pytest.mark.parametrize("guided", [{0}, {1, 2}, {0, 1}, {2}], ids=str)
@pytest.mark.parametrize("sigmas", [[8.0, 4.0, 2.0, 1.0, 0.0], [8.0, 1.0, 0.2, 0.1, 0.0]], ids=str)
def test_some_evaluations_of_a_step_of_heunpp2_move_by_a_part_of_what_all_do(sigmas, guided):
    """The first step, on x = 0, where the guidance shifts an estimate of 0 by 1."""

    def moved(guided):
        numbers, after = iter(range(100)), []
        sample_heunpp2(
            lambda x, sigma: torch.full_like(x, next(numbers) in guided),
            torch.zeros(1, 1, 1, 1),
            torch.tensor(sigmas),
            callback=lambda told: after.append(float(told["x"])),
            disable=True,
        )
        return after[1]

    assert 0 < moved(guided) < moved({0, 1, 2})


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("guide", [tiny.guided, depth.depth_guided, classifier_guided])
def test_a_sampler_may_drop_the_hosts_schedule(guide, everything):
    def without_schedule(executor, guider, sigmas, extra_args, *args, **kwargs):
        options = extra_args["model_options"]
        if everything:
            del options["transformer_options"]
        else:
            del options["transformer_options"]["sample_sigmas"]
        return executor(guider, sigmas, extra_args, *args, **kwargs)

    model = guide(tiny.patcher())
    dropped = model.clone()
    dropped.add_wrapper(WrappersMP.SAMPLER_SAMPLE, without_schedule)

    guided = tiny.sample(dropped)
    assert torch.equal(guided, tiny.sample(model))
    tiny.assert_steered(guided, tiny.sample(tiny.patcher()))


@pytest.mark.parametrize(
    ("evaluated", "starts"),
    [
        ([8, 4, 2, 1], [8, 4, 2, 1]),  # Euler
        ([8, 5.6, 4, 2.8, 2, 1.4, 1], [8, 8, 4, 4, 2, 2, 1]),  # DPM-Solver-2
        ([8, 4, 4, 2, 2, 1, 1], [8, 4, 4, 4, 2, 2, 1]),  # Heun; its first step is told as two
        ([8, 8, 4, 2, 1], [8, 8, 4, 2, 1]),  # the first sigma twice
    ],
)
def test_the_step_of_an_evaluation(evaluated, starts):
    steps = EvaluatedSteps()

    assert [steps.start(sigma, SCHEDULE) for sigma in evaluated] == starts


def test_a_schedule_may_repeat_a_sigma():
    """Euler's step between two equal sigmas does nothing."""
    steps, repeated = EvaluatedSteps(), torch.tensor([8.0, 4.0, 4.0, 2.0, 1.0, 0.0])

    assert [steps.start(sigma, repeated) for sigma in (8, 4, 4, 2, 1)] == [8, 4, 4, 2, 1]


@pytest.mark.parametrize("guide", [tiny.guided, depth.depth_guided, classifier_guided])
def test_a_repeated_sigma_changes_nothing(guide):
    found = [
        sampled_at(guide(tiny.patcher()), sigmas)
        for sigmas in ([8.0, 4.0, 2.0, 1.0, 0.0], [8.0, 4.0, 4.0, 2.0, 1.0, 0.0])
    ]

    assert torch.equal(*found)
    tiny.assert_steered(found[0], sampled_at(tiny.patcher(), [8.0, 4.0, 2.0, 1.0, 0.0]))


def sampled_at(model, sigmas, sampler=None, seed=0, latent=None):
    """The samples of SamplerCustom."""
    return comfy.sample.sample_custom(
        model,
        tiny.noise(),
        4.0,
        sampler or comfy.samplers.sampler_object("euler"),
        torch.tensor(sigmas),
        tiny.prompt(0),
        tiny.prompt(1),
        torch.zeros(1, 4, 16, 16) if latent is None else latent,
        disable_pbar=True,
        seed=seed,
    )


def test_a_sampler_may_begin_at_0():
    """As RF inversion does with flow models: there is no noise whose difference SAG could reuse."""

    def sampler_function(model, x, sigmas, extra_args, **options):
        for sigma in sigmas[:-1]:
            x = model(x, sigma[None], **extra_args)
        return x

    sampler = comfy.samplers.KSAMPLER(sampler_function)
    guided, plain = (
        sampled_at(model, [0.0, 0.3, 0.6], sampler, latent=tiny.noise(seed=3))
        for model in (tiny.guided(tiny.patcher(model_type="FLOW")), tiny.patcher(model_type="FLOW"))
    )
    tiny.assert_steered(guided, plain)


def test_the_largest_seed_of_the_host():
    largest = 2**64 - 1
    settings = {"depth_prior": depth.prior(), "target_scale": 0.0, "consistency_scale": 0.0}

    guided, plain = (
        sampled_at(model, [8.0, 4.0, 0.0], seed=largest)
        for model in (depth.depth_guided(tiny.patcher(), **settings), tiny.patcher())
    )
    tiny.assert_steered(guided, plain)
