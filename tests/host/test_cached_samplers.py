"""A sampler whose result the host took from its cache keeps its run."""

from types import SimpleNamespace

import pytest
import torch

import nodes as stock
from inner_guidance.host.recording.executing import wired_run
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny


def test_a_sampler_from_the_cache_has_the_run_of_the_node_that_sampled(said):
    """The host gives its output to every sampler with these inputs, which may have another id."""
    model, record = rec.record_attention(tiny.patcher())
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    results = []
    for seed, node_id in enumerate(["3", "4"]):
        with rec.executing(node_id):
            settings = (seed, 1, 4.0, "euler", "normal", tiny.prompt(0), tiny.prompt(1))
            results += stock.KSampler().sample(model, *settings, latent, 1.0)
    graph = {"20:3": {"inputs": {}}, "20:4": {"inputs": {}}}
    graph |= {f"map of {i}": {"inputs": {"latent": [f"20:{i}", 0]}} for i in (3, 4)}

    for i, result in zip((3, 4), results, strict=True):
        hidden = SimpleNamespace(
            unique_id=f"map of {i}", dynprompt=SimpleNamespace(get_node=graph.__getitem__)
        )
        assert wired_run(record, hidden, result).execution.node_id == str(i)
    assert said() == []


def test_the_image_of_an_earlier_seed_from_the_cache_is_not_shown_with_the_newest_record():
    model, record = rec.record_attention(tiny.patcher())
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    results = []
    for seed in range(2):
        with rec.executing("3", f"prompt {seed}"):
            settings = (seed, 1, 4.0, "euler", "normal", tiny.prompt(0), tiny.prompt(1))
            results += stock.KSampler().sample(model, *settings, latent, 1.0)
    graph = {"3": {"inputs": {}}, "4": {"inputs": {"latent": ["3", 0]}}}
    hidden = SimpleNamespace(unique_id="4", dynprompt=SimpleNamespace(get_node=graph.__getitem__))

    assert wired_run(record, hidden, results[1]) is record.runs[0]
    with pytest.raises(ValueError, match="later runs have replaced what was recorded of this LATENT"):
        wired_run(record, hidden, results[0])
