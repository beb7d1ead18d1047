"""Guidances on one model in either order: each adds what it adds alone."""

from functools import cache
from itertools import permutations

import comfy.samplers
import comfy_extras.nodes_perpneg as perpneg
import pytest
import torch

from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.classifier_models import classifier_guided

pytestmark = pytest.mark.oldest_host


def by_latent(seed):
    """Depth-Aware Guidance by a latent head of this seed."""
    return lambda model: depth.depth_guided(
        model, depth_head=depth.latent_head(model, seed), target_depth=depth.target()
    )


PAIRS = {
    "two heads": (by_latent(0), by_latent(1)),
    "SAG": (by_latent(0), tiny.guided),
    "DAG": (by_latent(0), depth.depth_guided),
    "classifier": (by_latent(0), classifier_guided),
    "no latent head": (tiny.guided, depth.depth_guided),
}


def cfg(model):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny.prompt(0), tiny.prompt(1))
    guider.set_cfg(4.0)
    return guider


def perp_neg(model):
    guider = perpneg.Guider_PerpNeg(model)
    guider.set_conds(tiny.prompt(0), tiny.prompt(1), tiny.prompt(9))
    guider.set_cfg(4.0, 1.0)
    return guider


@cache
def sampled(make_guider, sampler, *guidances):
    """The latent after one step, with guidances, each around those before it."""
    model = tiny.patcher()
    for guide in guidances:
        model = guide(model)
    guider, of_name = make_guider(model), comfy.samplers.sampler_object(sampler)
    sigmas = torch.tensor([3.0, 2.0])
    return guider.sample(tiny.noise(), torch.zeros(1, 4, 16, 16), of_name, sigmas, disable_pbar=True)


def moved(*run_and_guidances):
    """By how much guidances move it."""
    return (sampled(*run_and_guidances) - sampled(*run_and_guidances[:2])).double()


@pytest.mark.parametrize("make_guider", [cfg, perp_neg])
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_guidances_add_up_in_either_order(pair, make_guider):
    alone = sum(moved(make_guider, "euler", guide) for guide in pair)

    for ordered in permutations(pair):
        both = moved(make_guider, "euler", *ordered)
        assert (both - alone).norm() < 2e-3 * alone.norm()


@pytest.mark.parametrize("pair", ["two heads", "DAG"])
def test_both_move_cfg_pp_samplers_as_far_as_euler(pair):
    """They renoise from the unconditional estimate, which the second step of the pair gets from the first."""
    for ordered in permutations(PAIRS[pair]):
        as_euler = moved(perp_neg, "euler", *ordered)
        assert (moved(perp_neg, "euler_cfg_pp", *ordered) - as_euler).norm() < 2e-3 * as_euler.norm()
