"""Every sampler of the host with the guidances: a table of docs/compatibility.md."""

from functools import cache

import comfy.sample
import comfy.samplers
import torch
import torch.nn.functional as F

import nodes as stock
from inner_guidance.nodes.demo_model import InnerLoadDemoModel
from inner_guidance.nodes.demo_scenes import InnerDemoScenes
from inner_guidance.nodes.depth_aware_guidance import InnerDepthAwareGuidance
from inner_guidance.nodes.depth_estimate import InnerDepthEstimate
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.node_defaults import execute

PROMPT = "red sphere, blue box, grey checker floor, white wall"
SIZE, IMAGES, STEPS, SCHEDULER, CFG, SEED = 256, 2, 10, "karras", 1.5, 3
FARTHEST = 1.2  # of Euler's distance
LEAST = 1e-3  # of the norm, as in compatibility.py


@cache
def demo():
    """The outputs of Load Demo Model."""
    return InnerLoadDemoModel.execute().args


@cache
def prompts():
    """The positive and the negative."""
    return [stock.CLIPTextEncode().encode(demo()[1], text)[0] for text in (PROMPT, "")]


@cache
def target():
    """The depth map of a scene that is new to the demo model, with other objects than the prompt's."""
    return execute(InnerDemoScenes, first_seed=1_000_001, count=1, size=SIZE)[1]


@cache
def drawn_to_target():
    """The demo model, guided to the target alone."""
    model, _, _, head, *_ = demo()
    alone = {"consistency_scale": 0.0, "prior_scale": 0.0, "target_scale": 1.0}
    return execute(InnerDepthAwareGuidance, model=model, depth_head=head, target_depth=target(), **alone)[0]


def drawn(model, sampler):
    """The latents that KSampler draws."""
    latent = stock.EmptyLatentImage().generate(SIZE, SIZE, IMAGES)[0]
    settings = (SEED, STEPS, CFG, sampler, SCHEDULER)
    return stock.KSampler().sample(model, *settings, *prompts(), latent, 1.0)[0]["samples"]


def distance(latents):
    """sqrt(1 - r^2), r the correlation of the target with the depth that the head reads of finished latents.

    The mean over the images.
    """
    model, _, _, head, *_ = demo()
    given = {"model": model, "depth_head": head, "latent": {"samples": latents}, "positive": prompts()[1]}
    found = execute(InnerDepthEstimate, ensemble=1, **given)[2].reshape(IMAGES, -1)
    wanted = F.interpolate(target()[..., 0].unsqueeze(1), (SIZE // 8, SIZE // 8), mode="area").flatten()
    correlations = [torch.corrcoef(torch.stack([depth, wanted]))[0, 1] for depth in found]
    return float((1 - torch.stack(correlations).square()).sqrt().mean())


@cache
def distance_of_euler():
    """With guidance."""
    return distance(drawn(drawn_to_target(), "euler"))


def relative_distance(latents):
    """The distance to the target in units of Euler's."""
    return distance(latents) / distance_of_euler()


def without_and_with_guidance(sampler):
    """The latents of the demo model alone, and drawn to the target."""
    return [drawn(model, sampler) for model in (demo()[0], drawn_to_target())]


def tiny_samples(model, sampler):
    """Samples of a tiny model."""
    torch.manual_seed(0)
    latent = torch.zeros(1, 4, 8, 8)
    if sampler != "dpm_adaptive":
        return tiny.sample(model, latent, sampler=sampler, scheduler=SCHEDULER, steps=STEPS)
    # At its own tolerance it evaluates a model with random weights 600 times.
    tolerant = comfy.samplers.ksampler(sampler, {"rtol": 1.0, "atol": 1.0})
    model_sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, SCHEDULER, STEPS)
    conditions = tiny.prompt(0), tiny.prompt(1)
    given = (model, tiny.noise(*latent.shape), 4.0, tolerant, sigmas, *conditions, latent)
    return comfy.sample.sample_custom(*given, disable_pbar=True, seed=0)


def change_by_sag(sampler):
    """By how much SAG, with DAG, changes the samples of a tiny model, as a share of their norm.

    Zero if they are not finite, or a second run gives others.
    """
    dag = depth.depth_guided(tiny.patcher())
    both, again = (tiny_samples(tiny.guided(dag), sampler) for _ in range(2))
    if not both.isfinite().all() or not torch.equal(both, again):
        return 0.0
    return float((both - tiny_samples(dag, sampler)).norm() / both.norm())


def row(sampler):
    """The line of the table."""
    plain, guided = map(relative_distance, without_and_with_guidance(sampler))
    sag = change_by_sag(sampler)
    cells = [
        f"{plain:.2f}",
        f"{guided:.2f}" if guided < min(FARTHEST, plain) else f"FAULT: {guided:.2f}",
        "FAULT" if sag < LEAST else f"{sag:.2f}",
    ]
    return f"| {sampler} | {' | '.join(cells)} |"
