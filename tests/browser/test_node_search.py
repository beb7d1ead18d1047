"""What an artist types in the page's node search finds every node of the pack."""

import re

import pytest
from playwright.sync_api import Error, expect

from inner_guidance.tests.support.node_searches import SEARCHES

SEARCH = "() => window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"
NAME = "type => LiteGraph.registered_node_types[type].title"
MILLISECONDS = 10_000
OURS = re.compile("inner.guidance", re.IGNORECASE)


@pytest.mark.parametrize("language", ["page", "chinese_page"], ids=["English", "Chinese"])
def test_every_node_is_found(language, request):
    page = request.getfixturevalue(language)
    missed = []
    for typed, node in SEARCHES:
        page.evaluate(SEARCH)
        page.get_by_role("combobox").last.fill(typed)
        option = page.get_by_role("option").filter(has_text=page.evaluate(NAME, node)).first
        try:
            option.wait_for(timeout=MILLISECONDS)
        except Error:
            missed.append((typed, node))
        page.keyboard.press("Escape")

    assert not missed


@pytest.mark.parametrize("typed", ["SAG", "DAG", "depth map", "readout", "attention map", "depth control"])
def test_the_first_that_is_found_is_ours(typed, page):
    page.evaluate(SEARCH)
    page.get_by_role("combobox").last.fill(typed)
    expect(page.get_by_role("option").first).to_contain_text(OURS, timeout=MILLISECONDS)
    page.keyboard.press("Escape")
