"""The help page of every node, as the page shows it: its text, its links and its picture."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

FOLDER = Path(__file__).resolve().parents[2] / "web" / "docs"
# A page that never had a workflow shows no buttons over a selected node.
LOAD = "async workflow => { await window.app.loadGraphData(workflow); }"
# Whether the button of this node, alone in the graph, can be clicked. Until then all of it is done again: the
# page may still finish the load of a workflow, which brings nodes and view back.
CLICKABLE = """type => {
    const { canvas, graph } = window.app;
    const place = document.querySelector('[data-testid="info-button"]')?.getBoundingClientRect();
    const alone = graph.nodes.length === 1 && graph.nodes[0].type === type;
    if (alone && place?.top > 0 && place.left > 0 && place.bottom < innerHeight) return true;
    if (!alone) {
        graph.clear();
        graph.add(LiteGraph.createNode(type));
    }
    canvas.ds.scale = 1;
    canvas.ds.offset = [400, 300];
    canvas.setDirty(true, true);
    canvas.deselectAll();
    canvas.selectNode(graph.nodes[0]);
    return false;
}"""
ADDRESSES = "links => links.map(link => link.getAttribute('href'))"
# The widths of the pictures once all are loaded; 0 is a picture that is not there.
WIDTHS = """async pictures => {
    const ended = picture => new Promise(end => { picture.onload = picture.onerror = end; });
    await Promise.all(pictures.map(picture => picture.complete || ended(picture)));
    return pictures.map(picture => picture.naturalWidth);
}"""
WORKFLOW = json.loads(next(FOLDER.parents[1].glob("workflows/01*.json")).read_text(encoding="utf-8"))
MILLISECONDS = 20_000


def assert_help_is_shown(page, node):
    written = (FOLDER / f"{node}.md").read_text(encoding="utf-8")

    button = page.get_by_test_id("info-button")
    page.evaluate(LOAD, WORKFLOW)
    expect(button).to_be_hidden()
    page.wait_for_function(CLICKABLE, arg=node, polling=500, timeout=MILLISECONDS)
    button.click()

    shown = page.locator(".node-help-content")
    headings = shown.locator("h1, h2, h3")
    expect(headings).to_have_text(re.findall(r"^#+ (.+)$", written, re.MULTILINE), timeout=MILLISECONDS)
    assert re.findall(r"\]\((https://[^)]+)\)", written) == shown.locator("a").evaluate_all(ADDRESSES)
    widths = shown.locator("img").evaluate_all(WIDTHS)
    assert len(widths) == written.count("![")
    assert all(width > 200 for width in widths)


@pytest.mark.parametrize("node", sorted(path.stem for path in FOLDER.glob("*.md")))
def test_help_page_is_shown_whole(node, page):
    assert_help_is_shown(page, node)


def test_help_page_is_shown_in_nodes_2(own_chinese_page):
    assert_help_is_shown(own_chinese_page, "InnerSelfAttentionGuidance")
