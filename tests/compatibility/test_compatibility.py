"""docs/compatibility.md says what happens, for every node of the host that patches a model."""

import pytest

from inner_guidance.tests.support.compatibility import PAGE, row
from inner_guidance.tests.support.model_patching_nodes import tried_nodes

PAGE_ROWS = {
    line.split("|")[1].strip(): line
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| node ")
}


def test_the_page_names_every_node_and_no_fault(host):
    assert sorted(PAGE_ROWS) == sorted(tried_nodes(host)), "run `make compatibility`"
    assert [line for line in PAGE_ROWS.values() if "FAULT" in line] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGE_ROWS)
def test_the_row_of_the_page_is_what_happens(host, name):
    assert row(name, tried_nodes(host)[name]) == PAGE_ROWS[name], "run `make compatibility`"
