"""Classifier Guidance in the host's samplers, alone and with the other guidance, against float64 autograd."""

import logging

import comfy_extras.nodes_easycache as easycache
import pytest
import torch

from inner_guidance.host.steering import gradient_pass
from inner_guidance.nodes.classifier_guidance import InnerClassifierGuidance
from inner_guidance.tests.support import classifier_models as classifier
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.classifier_models import classifier_guided
from inner_guidance.tests.support.naive_depth import gradient_of, naive_features
from inner_guidance.tests.support.node_defaults import execute

pytestmark = pytest.mark.oldest_host

CFG = 4.0


class Seen:
    """What a post-CFG function behind ours is told: latent and sigma of a step, and the shift."""

    def __init__(self, model):
        self.steps = []
        model.set_model_sampler_post_cfg_function(self)

    def __call__(self, args):
        plain = args["uncond_denoised"] + CFG * (args["cond_denoised"] - args["uncond_denoised"])
        shift = (args["denoised"] - plain).clone()
        self.steps.append((args["input"].clone(), args["sigma"].clone(), shift))
        return args["denoised"]


def embedded(time):
    """(B,) -> (B, 64): cosines and sines."""
    frequency = 10_000 ** -(torch.arange(32, dtype=torch.float64) / 32)
    angle = time.double()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def naive_log_p(features, weights, time, label):
    """The network's equations, written out in float64."""
    w = {name: weight.clone().double() for name, weight in weights.items()}
    at, pooled = embedded(time), []
    for i, name in enumerate(classifier.TAPS):
        mean, var = (w[f"standardise.{i}.running_{of}"].view(1, -1, 1, 1) for of in ("mean", "var"))
        f = (features[name] - mean) / (var + 1e-5).sqrt()
        z = torch.einsum("oc,bchw->bohw", w[f"pixels.{i}.weight"][:, :, 0, 0], f)
        moved = at @ w[f"pixel_times.{i}.weight"].T + w[f"pixel_times.{i}.bias"] + w[f"pixels.{i}.bias"]
        z = z + moved[:, :, None, None]
        z = (z / (1 + (-z).exp())).flatten(2)
        score = torch.einsum("c,bcp->bp", w[f"scores.{i}.weight"][0, :, 0, 0], z)
        pooled.append(torch.einsum("bp,bcp->bc", score.softmax(1), z))
    h = (
        torch.cat(pooled, 1) @ w["pooled.weight"].T
        + w["pooled.bias"]
        + at @ w["time.weight"].T
        + w["time.bias"]
    )
    logits = (h / (1 + (-h).exp())) @ w["logits.weight"].T + w["logits.bias"]
    return logits[:, label] - logits.logsumexp(1)


def naive_shift(model, x, sigma, scale, flow=False, label=0):
    weights = classifier.head().head.network.state_dict()
    leaf, features, time = naive_features(model, classifier.TAPS, x, sigma, tiny.prompt(0))
    with torch.inference_mode(False), torch.enable_grad():
        log_p = naive_log_p(features, weights, time.clone(), label).sum()
    signal = 1 - float(sigma[0]) if flow else 1.0
    return scale * float(sigma[0]) ** 2 / signal * gradient_of(log_p, leaf)


def relative_error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("model_type", ["EPS", "V_PREDICTION", "FLOW"])
def test_the_shift_is_the_naive_gradient(model_type):
    model = tiny.patcher(model_type=model_type)
    guided = classifier_guided(model, scale=3.0)
    seen = Seen(guided)
    tiny.sample(guided, torch.zeros(2, 4, 16, 16), cfg=CFG, steps=4)

    flow = model_type == "FLOW"
    steps = seen.steps[1:3] if flow else seen.steps[:2]  # a flow model's first latent is noise alone
    for x, sigma, shift in steps:
        assert relative_error(shift, naive_shift(model, x, sigma, 3.0, flow)) < 1e-3
    if flow:
        assert seen.steps[0][2].abs().max() < 1e-5


def test_scale_0_says_that_the_node_does_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        idle = classifier_guided(tiny.patcher(), scale=0.0)

    assert caplog.messages == [
        "Classifier Guidance: it does nothing, because scale is 0. Raise it, or bypass the node."
    ]
    assert torch.equal(tiny.sample(idle), tiny.sample(tiny.patcher()))


def test_a_run_of_noise_alone_says_that_nothing_is_guided(caplog):
    latent = torch.zeros(1, 4, 16, 16)
    for steps, said in ((1, 1), (2, 0)):
        caplog.clear()
        model = classifier_guided(tiny.patcher(model_type="FLOW"), scale=3.0)
        tiny.sample(model, latent, steps=steps, scheduler="simple")
        assert len([m for m in caplog.messages if "the latent is noise alone" in m]) == said


def test_another_class_is_another_gradient():
    cat, dog = (
        tiny.sample(classifier_guided(tiny.patcher(), scale=3.0, class_name=name)) for name in ("cat", "dog")
    )

    tiny.assert_steered(cat, dog)


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"start_percent": 1.0}])
def test_scale_0_and_an_empty_window_leave_the_image_as_it_is(settings):
    model = tiny.patcher()

    assert torch.equal(tiny.sample(classifier_guided(model, **settings)), tiny.sample(model))


def test_with_depth_aware_guidance_one_pass_takes_both_gradients(monkeypatch):
    """Their shifts are what each of them adds alone, at the same latent."""
    model, passes = tiny.patcher(), []
    evaluate = gradient_pass.evaluate_with_gradient

    def count(executor, rows, layers, products, *args, **kwargs):
        passes.append(len(products))
        return evaluate(executor, rows, layers, products, *args, **kwargs)

    monkeypatch.setattr(gradient_pass, "evaluate_with_gradient", count)
    shifts = {}
    for name, guide in {
        "depth": depth.depth_guided,
        "classifier": lambda m: classifier_guided(m, scale=3.0),
        "both": lambda m: depth.depth_guided(classifier_guided(m, scale=3.0)),
        "other order": lambda m: classifier_guided(depth.depth_guided(m), scale=3.0),
    }.items():
        guided = guide(model)
        seen = Seen(guided)
        tiny.sample(guided, cfg=CFG, steps=1)
        shifts[name] = seen.steps[0][2]

    assert passes == [1, 1, 2, 2]
    expected = shifts["depth"] + shifts["classifier"]
    assert relative_error(shifts["both"], expected.double()) < 1e-4
    assert relative_error(shifts["other order"], expected.double()) < 1e-4


def test_with_sag_the_gradient_is_taken_at_the_original_latent():
    """The paper's order: SAG shifts the estimate, the classifier is asked about the latent as it is."""
    model, shifts = tiny.patcher(), {}
    for name, guide in {
        "sag": tiny.guided,
        "classifier": lambda m: classifier_guided(m, scale=3.0),
        "both": lambda m: classifier_guided(tiny.guided(m), scale=3.0),
        "other order": lambda m: tiny.guided(classifier_guided(m, scale=3.0)),
    }.items():
        guided = guide(model)
        seen = Seen(guided)
        tiny.sample(guided, cfg=CFG, steps=1)
        shifts[name] = seen.steps[0][2]

    expected = (shifts["sag"] + shifts["classifier"]).double()
    assert relative_error(shifts["both"], expected) < 1e-4
    assert relative_error(shifts["other order"], expected) < 1e-4


def test_without_cfg_and_with_several_samplers():
    for sampler in ("euler_ancestral", "dpmpp_2m", "lcm", "euler_cfg_pp"):
        plain, guided = (
            tiny.sample(model, cfg=1.0, sampler=sampler)
            for model in (tiny.patcher(), classifier_guided(tiny.patcher(), scale=3.0))
        )
        tiny.assert_steered(guided, plain)


def test_a_skipped_step_of_a_cache_takes_the_last_shift_of_the_noise(caplog):
    model = easycache.EasyCacheNode.execute(tiny.patcher(), 10.0, 0.0, 1.0, False).result[0]
    guided = classifier_guided(model, scale=0.3)
    seen = Seen(guided)

    tiny.sample(guided, cfg=CFG, steps=6)

    assert "has no effect" not in caplog.text
    last, *skipped = [shift / sigma for _, sigma, shift in seen.steps[1:]]
    assert last.abs().max() > 0.1
    for shift in skipped:
        torch.testing.assert_close(shift, last, rtol=0, atol=1e-3 * float(last.abs().max()))


def test_checkpointing_gives_the_same_image():
    first, second = (
        tiny.sample(classifier_guided(tiny.patcher(), scale=3.0, checkpointing=on)) for on in (False, True)
    )

    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_a_gradient_that_is_not_finite_warns_once_and_leaves_the_image(caplog):
    broken = classifier.head()
    broken.head.network.logits.bias.fill_(torch.nan)

    with caplog.at_level(logging.WARNING):
        image = tiny.sample(classifier_guided(tiny.patcher(), classifier_head=broken))

    plain = tiny.sample(tiny.patcher())
    assert (image - plain).abs().max() < 1e-3 * plain.abs().max()  # both prompts have a pass of their own
    assert caplog.text.count("Classifier Guidance has no effect") == 1


def test_unknown_classes_and_heads_of_other_models_are_refused_at_once():
    with pytest.raises(
        ValueError, match=r"class_name: classifier_of_test does not know 'cwo'\. It knows cat, "
    ):
        classifier_guided(tiny.patcher(), class_name="cwo")
    with pytest.raises(ValueError, match=r"classifier_of_test reads 64 channels at o1"):
        execute(
            InnerClassifierGuidance,
            model=tiny.patcher("sd15"),
            classifier_head=classifier.head(),
            class_name="cat",
        )
