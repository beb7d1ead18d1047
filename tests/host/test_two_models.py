"""DualModelGuider with a negative model of fewer blocks: what it lacks is not read, and nothing fails."""

import pytest
import torch

from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny

custom_sampler = pytest.importorskip("comfy_extras.nodes_custom_sampler")
if not hasattr(custom_sampler, "Guider_DualModel"):
    pytest.skip("this host has no DualModelGuider", allow_module_level=True)


def sample(model, negative_model=None):
    """Two steps; the negative by the small model, which has no u8, no o11 and no o4."""
    guider = custom_sampler.Guider_DualModel(model, negative_model or tiny.patcher("small"))
    guider.set_conds(tiny.prompt(0), tiny.prompt(1))
    guider.set_cfg(4.0)
    return tiny.sample_with(guider, steps=2)


def test_sag_says_that_it_cannot_read_the_negatives_attention(said):
    plain = tiny.patcher("sd15")

    assert torch.equal(sample(tiny.guided(plain, blocks="u8")), sample(plain))

    (sentence,) = said()
    assert sentence.endswith("the attention of the chosen blocks could not be read.")


def test_sag_by_the_positives_attention_and_by_a_block_of_both():
    plain = tiny.patcher("sd15")

    tiny.assert_steered(sample(tiny.guided(plain, blocks="u8", branch="positive")), sample(plain))
    tiny.assert_steered(sample(tiny.guided(plain, blocks="m0,u8")), sample(plain))


def recorded(*negative_model):
    """The first step's attention, features and depth."""
    model, attention = rec.record_attention(tiny.patcher("sd15"), blocks="u8")
    model, features = rec.record_features(model, blocks="o11", branch="both", depth_head=depth.head("sd15"))
    sample(model, *negative_model)
    return rec.steps_of(attention)[0], rec.steps_of(features)[0]


def test_records_hold_the_positive_as_with_a_negative_of_the_same_blocks():
    attention, features = recorded()
    of_both_attention, of_both_features = recorded(tiny.patcher("sd15"))

    assert {branch for branch, _ in of_both_attention.received} == {"positive", "negative"}
    for found, of_both in (
        (attention.received, of_both_attention.received),
        (attention.prompt, of_both_attention.prompt),
        (features.features, of_both_features.features),
    ):
        assert {branch for branch, *_ in found} == {"positive"}
        for key, positive in found.items():
            assert torch.equal(positive, of_both[key])
    assert torch.equal(features.depth, of_both_features.depth)
