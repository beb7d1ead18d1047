"""Whose run a map node shows, and what a record holds."""

import pytest
import torch

from inner_guidance.host.recording.records import (
    RUNS_KEPT,
    AttentionRecord,
    AttentionStep,
    Execution,
    FeatureRecord,
    Run,
)


def step(number, sigma=1.0):
    return AttentionStep(number, sigma, {}, {})


def run(node_id, prompt_id="p", list_index=0, steps=1):
    return Run(
        Execution(prompt_id, node_id, list_index), (1, 4, 8, 8), (64, 64), [step(i) for i in range(steps)]
    )


def record_of(*runs):
    record = AttentionRecord()
    for one in runs:
        record.begin(one)
    return record


# 1 recorded model -> 2 sampler -> 3 upscale -> 4 sampler -> 5 decode, 6 noise mask
PROMPT = {
    "1": {"inputs": {"blocks": "m0"}},
    "2": {"inputs": {"model": ["1", 0], "seed": 3}},
    "3": {"inputs": {"samples": ["2", 0]}},
    "4": {"inputs": {"model": ["1", 0], "latent_image": ["3", 0]}},
    "5": {"inputs": {"samples": ["4", 0]}},
    "6": {"inputs": {"samples": ["4", 0], "mask": ["5", 1]}},
    "after the first": {"inputs": {"record": ["1", 1], "latent": ["2", 0]}},
    "before the second": {"inputs": {"record": ["1", 1], "latent": ["3", 0]}},
    "after the second": {"inputs": {"record": ["1", 1], "latent": ["6", 0]}},
    "after nothing": {"inputs": {"record": ["1", 1], "latent": ["7", 0]}},
    "unwired": {"inputs": {"record": ["1", 1]}},
    "7": {"inputs": {"width": 64}},
}


@pytest.mark.parametrize(
    ("node", "sampler"),
    [("after the first", "2"), ("before the second", "2"), ("after the second", "4")],
)
@pytest.mark.parametrize("order", [("2", "4"), ("4", "2")])
def test_the_nearest_sampler_upstream_of_the_latent(node, sampler, order):
    record = record_of(*map(run, order))

    assert record.run_for(node, PROMPT.__getitem__).execution.node_id == sampler


def test_one_run_is_the_run():
    """Also where the sampler cannot be found: outside a server, or behind a node that hides it."""
    record = record_of(run("2"))

    assert record.run_for("after nothing", PROMPT.__getitem__) is record.runs[0]
    assert record.run_for(None, None) is record.runs[0]


@pytest.mark.parametrize(
    ("node", "get_node"),
    [("after nothing", PROMPT.__getitem__), ("unwired", PROMPT.__getitem__), (None, None)],
)
def test_a_latent_of_another_sampler_is_refused(node, get_node):
    with pytest.raises(ValueError, match="none of the 2 samplers that were recorded"):
        record_of(run("2"), run("4")).run_for(node, get_node)


def test_an_empty_record_says_what_to_wire():
    with pytest.raises(ValueError, match="Record Features: nothing is recorded"):
        FeatureRecord().run_for("after the first", PROMPT.__getitem__)


def test_a_run_without_a_step_in_the_range():
    record = record_of(run("2", steps=0), run("4"))

    with pytest.raises(ValueError, match="nothing was read of this sampler's run"):
        record.run_for("after the first", PROMPT.__getitem__)
    assert record.run_for("after the second", PROMPT.__getitem__).steps


@pytest.mark.parametrize("renamed", [("2",), ("4",), ("2", "4")])
def test_a_sampler_that_has_another_id_by_now(renamed):
    """The host took its output from the cache: it was replaced by an equal one, or went into a subgraph."""
    first, second = run("2"), run("4")
    first.samples, second.samples = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)
    record = record_of(first, second)
    ids = {node_id: f"20:{node_id}" for node_id in renamed}

    def get_node(node_id):
        node = {new: PROMPT[old] for old, new in ids.items()}.get(node_id) or PROMPT[node_id]
        links = {
            name: [ids.get(v[0], v[0]), v[1]] for name, v in node["inputs"].items() if isinstance(v, list)
        }
        return {"inputs": links}

    for node, samples, expected in [
        ("after the first", torch.zeros(1, 4, 8, 8), first),
        ("after the second", torch.ones(1, 4, 8, 8), second),
    ]:
        assert record.run_for(node, get_node, samples=samples) is expected


def test_the_latent_of_a_video_with_sound_is_no_tensor():
    """Its run is found by the wires."""
    only = run("2")
    only.samples = torch.zeros(1, 1, 64)
    assert not only.gave(object())


def test_equal_results_are_told_apart_by_the_wires():
    first, second = run("2"), run("4")
    first.samples = second.samples = torch.zeros(1, 4, 8, 8)
    record = record_of(first, second)

    assert record.run_for("after the first", PROMPT.__getitem__, samples=torch.zeros(1, 4, 8, 8)) is first
    assert record.run_for("after the second", PROMPT.__getitem__, samples=torch.zeros(1, 4, 8, 8)) is second


@pytest.mark.parametrize("seeds", [2, 9])
def test_a_result_whose_run_was_replaced_is_not_shown_as_the_newest(seeds):
    """The host's cache has the images of earlier seeds, too."""
    record = AttentionRecord()
    for seed in range(seeds):
        record.begin(newest := run("2", prompt_id=f"prompt {seed}"))
        newest.samples = torch.full((1, 4, 8, 8), float(seed))

    for seed in range(seeds - 1):
        earlier = torch.full((1, 4, 8, 8), float(seed))
        with pytest.raises(ValueError, match="later runs have replaced what was recorded of this LATENT"):
            record.run_for("after the first", PROMPT.__getitem__, samples=earlier)
    assert record.run_for("after the first", PROMPT.__getitem__, samples=newest.samples.clone()) is newest
    assert record.run_for("after the first", PROMPT.__getitem__, samples=newest.samples + 1) is newest


def test_a_result_whose_run_was_dropped_is_not_shown_as_another():
    record = AttentionRecord()
    for turn in range(RUNS_KEPT + 1):
        record.begin(newest := run(f"2.{turn}"))
        newest.samples = torch.full((1, 4, 8, 8), float(turn))

    with pytest.raises(ValueError, match="later runs have replaced what was recorded of this LATENT"):
        record.run_for("after the first", PROMPT.__getitem__, samples=torch.zeros(1, 4, 8, 8))


def test_equal_results_of_samplers_that_have_other_ids_by_now():
    """At CFG 1, say, two samplers with different negative prompts."""
    first, second = run("30"), run("40")
    first.samples = second.samples = torch.zeros(1, 4, 8, 8)
    record = record_of(first, second)
    assert record.run_for("after the first", PROMPT.__getitem__, samples=torch.zeros(1, 4, 8, 8)) is second


def test_a_loop_in_the_prompt_ends():
    prompt = PROMPT | {"7": {"inputs": {"a": ["8", 0]}}, "8": {"inputs": {"a": ["7", 0]}}}

    with pytest.raises(ValueError, match="none of the 2"):
        record_of(run("2"), run("4")).run_for("after nothing", prompt.__getitem__)


def test_a_sampler_inside_a_node_that_expands():
    record = record_of(run("4"), run("2.0.0.1"), run("2.0.0.7"), run("20"))

    assert record.run_for("after the first", PROMPT.__getitem__).execution.node_id == "2.0.0.7"


def test_a_node_that_samples_again_replaces_its_run():
    record = record_of(run("2", "first"), run("4", "first"))
    again = run("2", "second")

    record.begin(again)

    assert [r.execution.node_id for r in record.runs] == ["4", "2"]
    assert record.run_for("after the first", PROMPT.__getitem__) is again


def test_items_of_a_list_stand_side_by_side():
    items = [run("2", list_index=i) for i in range(3)]
    record = record_of(*items)

    assert record.run_for("after the first", PROMPT.__getitem__, 1) is items[1]
    assert record.run_for("after the first", PROMPT.__getitem__, 5) is items[2]

    record.begin(run("2", "second", list_index=0))
    assert len(record.runs) == 1


@pytest.mark.parametrize("with_result", [True, False], ids=["result", "upscaled"])
def test_items_of_a_long_list_are_not_shown_with_the_record_of_another(with_result):
    """The results of the first items are forgotten, too; upscaled, none is known."""
    record = AttentionRecord()
    for item in range(30):
        record.begin(newest := run("2", list_index=item))
        newest.samples = torch.full((1, 4, 8, 8), float(item))

    for item in range(30):
        samples = torch.full((1, 4, 8, 8), float(item)) if with_result else torch.zeros(1, 4, 16, 16)
        if item < 30 - RUNS_KEPT:
            with pytest.raises(ValueError, match=f"each item of a list is one: show at most {RUNS_KEPT}"):
                record.run_for("after the first", PROMPT.__getitem__, item, samples)
        else:
            found = record.run_for("after the first", PROMPT.__getitem__, item, samples)
            assert found.execution.list_index == item


def test_why_nothing_was_read_is_said():
    empty = run("2", steps=0)
    empty.unread = "At cfg 1 there is no negative."

    with pytest.raises(ValueError, match=r"nothing was read of this sampler's run\. At cfg 1 there is no"):
        record_of(empty).run_for("after the first", PROMPT.__getitem__)


def test_no_more_runs_than_are_kept():
    record = record_of(*(run(str(i)) for i in range(RUNS_KEPT + 3)))

    assert [r.execution.node_id for r in record.runs] == [str(i + 3) for i in range(RUNS_KEPT)]


def test_steps_are_in_order_and_each_there_once():
    one = run("2", steps=0)

    for number, sigma in [(0, 9.0), (2, 5.0), (1, 7.0), (2, 5.5)]:
        one.put(step(number, sigma))

    assert [(s.number, s.sigma) for s in one.steps] == [(0, 9.0), (1, 7.0), (2, 5.5)]
