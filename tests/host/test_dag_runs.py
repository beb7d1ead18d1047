"""Depth-Aware Guidance in the host's sampling runs: samplers, schedules, UNets, latents, neighbours."""

import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention

from inner_guidance.host.recording.records import Execution
from inner_guidance.host.steering import dag_run
from inner_guidance.nodes import depth_aware_guidance as depth_aware_node
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.depth_models import assert_steers, sampled

pytestmark = pytest.mark.oldest_host

SMALL = torch.zeros(1, 4, 8, 8)

# Its steps are as small as the model is rough, and models of random weights are: it takes hundreds. On the
# demo model it runs, in test_demo_depth_guidance.py.
SAMPLERS = [name for name in comfy.samplers.KSampler.SAMPLERS if name != "dpm_adaptive"]
# One of each kind runs in `make quick`.
QUICK = ("euler", "euler_ancestral", "heun", "dpmpp_sde", "uni_pc", "euler_cfg_pp", "lcm", "normal", "karras")


def slow_unless_quick(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


# Samplers and schedulers


@pytest.mark.parametrize("sampler", slow_unless_quick(SAMPLERS))
def test_every_sampler(sampler):
    assert_steers(latent=SMALL, sampler=sampler)


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "ddpm", "heun", "dpmpp_2m", "dpmpp_sde"])
def test_the_papers_rule(sampler):
    """At a strength that these heads, which are flatter than trained ones, need."""
    assert_steers(latent=SMALL, sampler=sampler, settings={"mode": "paper", "consistency_scale": 10.0})


@pytest.mark.parametrize("scheduler", slow_unless_quick(comfy.samplers.KSampler.SCHEDULERS))
def test_every_scheduler(scheduler):
    assert_steers(latent=SMALL, scheduler=scheduler)


@pytest.mark.parametrize("model_type", ["V_PREDICTION", "EDM", "FLOW", "V_PREDICTION_EDM"])
def test_every_parametrisation(model_type):
    assert_steers(model=tiny.patcher(model_type=model_type))


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "inpaint"])
def test_every_unet(kind):
    latent = torch.zeros(1, 4, 16, 24)
    values = {}
    if kind == "inpaint":
        values = {"concat_latent_image": torch.zeros(1, 4, 16, 24), "concat_mask": torch.ones(1, 1, 16, 24)}
    prompts = {"positive": tiny.prompt(0, **values), "negative": tiny.prompt(1, **values)}

    assert_steers(model=tiny.patcher(kind), latent=latent, settings={"kind": kind}, **prompts)


@pytest.mark.parametrize("size", [(17, 24), (9, 33)])
def test_sizes_that_the_blocks_do_not_divide(size):
    assert_steers(latent=torch.zeros(1, 4, *size))


def test_image_to_image_and_a_hires_pass():
    small = sampled(latent=SMALL, steps=4)
    large = torch.nn.functional.interpolate(small, scale_factor=2)

    assert_steers(latent=large, denoise=0.5, steps=4)


def test_in_inpainting_only_what_is_drawn_anew_is_guided():
    latent = tiny.noise(1, 4, 16, 16, seed=3)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1

    image = sampled(latent=latent, noise_mask=mask)
    plain = sampled(guide=False, latent=latent, noise_mask=mask)

    assert torch.equal(image[..., 8:], plain[..., 8:])
    tiny.assert_steered(image[..., :8], plain[..., :8])


def test_a_readout_head_reads_the_embedding_of_the_time():
    assert_steers(settings={"depth_head": depth.readout_head()})


def test_checkpointing_computes_blocks_again_and_gives_the_same_image():
    def run(checkpointing):
        model, calls = tiny.patcher(), []
        model.set_model_attn1_patch(lambda q, k, v, extra_options: calls.append(1) or (q, k, v))
        image = sampled(model=model, settings={"checkpointing": checkpointing})
        return image, len(calls)

    (once, calls), (twice, more_calls) = run(False), run(True)

    assert more_calls > calls
    torch.testing.assert_close(twice, once, rtol=1e-4, atol=1e-4)


def test_the_depth_is_shown_on_the_node_while_a_sampler_runs(monkeypatch):
    shown = []

    class Preview:
        def __init__(self, node_id, steps):
            shown.append((node_id, steps))

        def show(self, done, picture):
            shown.append((done, picture()))

        def end(self):
            shown.append("end")

    monkeypatch.setattr(dag_run, "LivePreview", Preview)
    monkeypatch.setattr(depth_aware_node, "executing", lambda: Execution("prompt", "7"))

    sampled(latent=torch.zeros(2, 4, 16, 24), settings={"every_n_steps": 2})

    (first, second) = shown[1:-1]
    assert (shown[0], first[0], second[0], shown[-1]) == (("7", 3), 1, 3, "end")
    assert first[1].shape == (171, 2 * 256, 3)
    assert 0 <= first[1].min() < first[1].max() <= 1


# Beside others


def test_beside_a_controlnet():
    from inner_guidance.tests.support.residual_control import (
        Residuals,  # skips where the host has no comfy.controlnet
    )

    def run(guide, control):
        values = {"control": Residuals(), "control_apply_to_uncond": False} if control else {}
        prompts = {"positive": tiny.prompt(0, **values), "negative": tiny.prompt(1, **values)}
        return sampled(guide=guide, **prompts)

    guided, plain = run(True, True), run(False, True)

    tiny.assert_steered(guided, plain)
    assert (guided - plain).norm() < (plain - run(False, False)).norm()


def test_beside_a_lora():
    def with_lora():
        model = tiny.patcher()
        generator = torch.Generator().manual_seed(5)
        weights = {
            f"diffusion_model.{name}": (torch.randn(w.shape, generator=generator) * 0.02,)
            for name, w in model.model.diffusion_model.named_parameters()
            if w.ndim == 2
        }
        assert model.add_patches(weights, 1.0)
        return model

    before = {name: w.clone() for name, w in tiny.patcher().model.named_parameters()}
    guided, plain = sampled(model=with_lora()), sampled(guide=False, model=with_lora())

    tiny.assert_steered(guided, plain)
    tiny.assert_steered(plain, sampled(guide=False))  # by the LoRA
    comfy.model_management.unload_all_models()
    assert all(torch.equal(w, before[name]) for name, w in tiny.patcher().model.named_parameters())


def test_beside_an_ipadapter():
    """Cross-attention that a node has replaced, for the positive alone, is in the graph."""
    tokens = tiny.noise(1, 4, 64, seed=7) * 3

    def replaced(q, k, v, extra_options):
        out, heads = optimized_attention(q, k, v, extra_options["n_heads"]), extra_options["n_heads"]
        image = tokens.expand(len(q), -1, -1)
        added = optimized_attention(q, image, image, heads).chunk(len(extra_options["cond_or_uncond"]))
        positive = [label == 0 for label in extra_options["cond_or_uncond"]]
        return out + torch.cat([a * on for a, on in zip(added, positive, strict=True)])

    def run(guide, strength=1.0):
        model = tiny.patcher()
        model.set_model_attn2_replace(replaced, "middle", 0)
        return sampled(guide, model, settings={"consistency_scale": strength})

    guided, plain = run(True), run(False)

    tiny.assert_steered(guided, plain)
    assert (guided - plain).norm() < (plain - sampled(guide=False)).norm()
