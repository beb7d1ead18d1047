"""docs/compatibility.md says what happens, for the host's nodes that change a run and for its samplers."""

import comfy.samplers
import pytest

from inner_guidance.tests.support import sampler_table
from inner_guidance.tests.support.compatibility import PAGE, row, row_with_more
from inner_guidance.tests.support.model_patching_nodes import tried_nodes
from inner_guidance.tests.support.nodes_with_more import NODES

SAMPLERS = comfy.samplers.KSampler.SAMPLERS
ROWS, ROWS_WITH_MORE, SAMPLER_ROWS = (
    {
        line.split("|")[1].strip(): line
        for line in part.splitlines()
        if line.startswith("| ") and not line.startswith(("| node ", "| sampler "))
    }
    for part in PAGE.read_text(encoding="utf-8").split("\n## ")
)


def test_the_page_names_every_node_and_sampler_and_no_fault(host):
    assert sorted(ROWS) == sorted(tried_nodes(host)), "run `make compatibility`"
    assert list(ROWS_WITH_MORE) == list(NODES), "run `make compatibility`"
    assert list(SAMPLER_ROWS) == list(SAMPLERS), "run `make compatibility`"
    assert "FAULT" not in PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_the_row_of_the_page_is_what_happens(host, name):
    assert row(name, tried_nodes(host)[name]) == ROWS[name], "run `make compatibility`"


@pytest.mark.slow
@pytest.mark.parametrize("name", NODES)
def test_the_row_of_a_node_that_needs_more_is_what_happens(name):
    assert row_with_more(name) == ROWS_WITH_MORE[name], "run `make compatibility`"


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_demo_model_draws_and_a_target_is_followed_as_with_euler(sampler):
    latents = sampler_table.without_and_with_guidance(sampler)
    plain, guided = map(sampler_table.relative_distance, latents)

    assert 0.3 < latents[0].std() < 2.5  # 1 on renders; a sampler that diverges leaves that far behind
    assert guided < sampler_table.FARTHEST
    assert guided < plain


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sag_acts_with_dag_and_a_second_run_is_the_same(sampler):
    assert sampler_table.change_by_sag(sampler) > sampler_table.LEAST
