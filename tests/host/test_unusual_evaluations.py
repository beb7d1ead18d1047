"""Evaluations without noise, at no number, without a positive, in another precision or by another node."""

from itertools import pairwise

import comfy.samplers
import pytest
import torch

from inner_guidance.host.steering import gradient_pass
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.classifier_models import classifier_guided
from inner_guidance.tests.support.recorded_runs import record_features, steps_of

pytestmark = pytest.mark.oldest_host


def faint_head():
    """A head whose gradient is so small that its square is 0 in half precision."""
    head = depth.head()
    for branch in (head.head.network.strong, head.head.network.weak):
        branch.depth.weight *= 1e-5
    return head


DAG = {
    "DAG": lambda model: depth.depth_guided(model, depth_head=faint_head()),
    "DAG, paper": lambda model: depth.depth_guided(model, mode="paper", target_depth=depth.target()),
    "DAG by a latent head": lambda model: depth.depth_guided(
        model, depth_head=depth.latent_head(model), target_depth=depth.target()
    ),
}
NODES = DAG | {"SAG": tiny.guided, "Classifier Guidance": lambda model: classifier_guided(model, scale=10.0)}


def evaluated(model, sigma, dtype=torch.float32, positive=None):
    """What a sampler that computes in this precision is given at this sigma."""
    found = []

    def ask(model, x, sigmas, extra_args, callback, disable):
        found.append(model(x.to(dtype), torch.full((1,), sigma, dtype=dtype), **extra_args))
        return x

    run(model, ask, torch.tensor([5.0, 1.0, 0.0]), positive)
    return found[0]


def run(model, sampler_function, sigmas, positive=None):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny.prompt(0) if positive is None else positive, tiny.prompt(1))
    guider.set_cfg(4.0)
    sampler, latent = comfy.samplers.KSAMPLER(sampler_function), torch.zeros(1, 4, 16, 16)
    guider.sample(tiny.noise(), latent, sampler, sigmas, disable_pbar=True, seed=0)


@pytest.mark.parametrize("node", NODES)
def test_nothing_is_guided_without_noise_and_at_no_number(node):
    model, plain = NODES[node](tiny.patcher()), tiny.patcher()

    tiny.assert_steered(evaluated(model, 5.0), evaluated(plain, 5.0))
    for sigma in (0.0, torch.nan, torch.inf):
        torch.testing.assert_close(
            evaluated(model, sigma), evaluated(plain, sigma), rtol=0, atol=0, equal_nan=True
        )


# In half precision the host rounds what the model gets. This model's attention is peaked, so that moves the
# guidance by up to a fifth.
@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 0.25), (torch.float64, 0.01)])
@pytest.mark.parametrize("node", ["SAG", "DAG", "DAG by a latent head"])
def test_a_sampler_of_another_precision_keeps_it_and_is_guided_as_much(node, dtype, error):
    model, plain = NODES[node](tiny.patcher()), tiny.patcher()
    expected = evaluated(model, 5.0) - evaluated(plain, 5.0)

    guided = evaluated(model, 5.0, dtype)

    assert guided.dtype == dtype
    shift = guided.float() - evaluated(plain, 5.0, dtype).float()
    assert (shift - expected).norm() < error * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rounded_sigmas_belong_to_their_steps(dtype, monkeypatch):
    taken = []
    evaluate = gradient_pass.evaluate_with_gradient
    monkeypatch.setattr(
        gradient_pass, "evaluate_with_gradient", lambda *args, **of: taken.append(0) or evaluate(*args, **of)
    )
    model, record = record_features(NODES["DAG"](tiny.patcher()))
    sigmas = torch.tensor([14.6146, 7.3019, 3.0171, 1.0037, 0.0])

    def euler(model, x, sigmas, extra_args, callback, disable):
        x = x.to(dtype)
        for sigma, following in pairwise(sigmas):
            denoised = model(x, sigma * x.new_ones(1), **extra_args)
            x = denoised + (x - denoised) * (following / sigma)
        return x

    run(model, euler, sigmas)

    assert len(taken) == 4
    assert [step.number for step in steps_of(record)] == [0, 1, 2, 3]
    assert [step.sigma for step in steps_of(record)] == sigmas[:4].tolist()


@pytest.mark.parametrize("node", ["DAG", "DAG, paper", "Classifier Guidance"])
def test_without_a_positive_there_is_no_estimate_to_shift(node, caplog):
    model, plain = NODES[node](tiny.patcher()), tiny.patcher()

    assert torch.equal(evaluated(model, 5.0, positive=[]), evaluated(plain, 5.0, positive=[]))
    assert len([m for m in caplog.messages if "the positive has no prompt for this step" in m]) == 1


@pytest.mark.parametrize("node", ["DAG", "Classifier Guidance", "SAG"])
def test_a_node_that_evaluates_the_model_in_its_own_way_is_named(node, caplog):
    """Its function stands in place of the host's evaluation, and does not call it."""

    def predictions(args):
        x, sigma, options = args["input"], args["sigma"], args["model_options"]["transformer_options"]
        return [
            args["model"].apply_model(x, sigma, c_crossattn=prompt, transformer_options=options)
            for prompt in (tiny.prompt(0)[0][0], tiny.prompt(1)[0][0])
        ]

    plain = tiny.patcher()
    plain.set_model_sampler_calc_cond_batch_function(predictions)

    assert torch.equal(evaluated(NODES[node](plain), 5.0), evaluated(plain, 5.0))
    assert len([m for m in caplog.messages if "has no effect at sigma 5.000" in m]) == 1
