"""The page with Nodes 2.0 and in Chinese: templates, node search and help pages."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import expect

from inner_guidance.tests.support.page_checks import errors_of, overlaps

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
ALWAYS = ("01 Demo - Self-Attention Guidance", "20 Depth-aware guidance on SD 1.5")
TEXTS = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
AS_TEMPLATE = """async workflow => {
    await window.app.loadGraphData(workflow, true, true, null, { openSource: "template" });
}"""
DRAWN = "number => document.querySelectorAll('[data-node-id]').length === number"
SEARCH = "() => window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"
ADD = """type => {
    const { canvas, graph } = window.app;
    graph.add(LiteGraph.createNode(type));
    canvas.ds.scale = 1;
    canvas.ds.offset = [300, 200];
}"""
WIDGETS = "() => window.app.graph.nodes[0].widgets.map(widget => widget.name)"
LEAST_ZOOM = 8 / 14  # the classic canvas draws no text below it
MILLISECONDS = 20_000


@pytest.mark.parametrize(
    "name",
    [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.every_template) for name in NAMES],
)
def test_a_template_opens(name, chinese_page):
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    with errors_of(chinese_page) as errors:
        chinese_page.evaluate(AS_TEMPLATE, workflow)
        chinese_page.wait_for_function(DRAWN, arg=len(workflow["nodes"]), timeout=MILLISECONDS)
        chinese_page.wait_for_timeout(300)  # for the marks of missing files, below their nodes

    assert not errors
    assert not overlaps(chinese_page, nodes_2=True)
    assert chinese_page.evaluate("() => window.app.canvas.ds.scale") >= LEAST_ZOOM
    titles = chinese_page.evaluate("() => window.app.graph.nodes.map(node => [node.type, node.title])")
    untitled = {node["type"] for node in workflow["nodes"] if "title" not in node} & TEXTS.keys()
    for kind in untitled:
        assert [kind, TEXTS[kind]["display_name"]] in titles


def test_node_search_finds_a_translated_name(chinese_page):
    name = TEXTS["InnerDepthEstimate"]["display_name"]
    chinese_page.evaluate(SEARCH)
    chinese_page.get_by_role("combobox").last.fill(name)

    found = chinese_page.get_by_role("option").filter(has_text=name)
    found.first.wait_for(timeout=MILLISECONDS)
    chinese_page.keyboard.press("Escape")


@pytest.mark.parametrize(
    ("kind", "advanced"),
    [
        ("InnerSelfAttentionGuidance", {"space", "every_n_steps", "mask"}),
        (
            "InnerDepthAwareGuidance",
            {"every_n_steps", "checkpointing", "self_start_percent", "target_end_percent", "target_blur"},
        ),
    ],
)
def test_advanced_inputs_are_folded_until_asked_for(kind, advanced, chinese_page):
    node = chinese_page.locator("[data-node-id]")
    chinese_page.evaluate("() => window.app.graph.clear()")
    expect(node).to_have_count(0)  # or the page takes a new node of the same number for the old one
    chinese_page.evaluate(ADD, kind)
    widgets = chinese_page.evaluate(WIDGETS)
    names = [TEXTS[kind]["inputs"][widget]["name"] for widget in widgets]
    shown = node.get_by_test_id("widget-layout-field-label")

    expect(shown).to_have_text(
        [name for widget, name in zip(widgets, names, strict=True) if widget not in advanced],
        timeout=MILLISECONDS,
    )
    node.get_by_test_id("advanced-inputs-button").click()
    expect(shown).to_have_text(names, timeout=MILLISECONDS)
